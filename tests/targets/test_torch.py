"""PyTorch itself as a target: what its files hold, half precision, and how a layer and a whole file are measured."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import paretoprune as pp
from paretoprune.core.errors import TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.measurement import Measurement
from paretoprune.pipeline.targets import GraphFiles, find_target
from paretoprune.targets import LayerSpec, Timing, measure_file, measure_layer
from paretoprune.targets import find_target as bare_find_target
from paretoprune.targets.feeds import feed_of
from paretoprune.targets.fresh import in_fresh_process, opener_of
from paretoprune.targets.torch_target import Torch
from paretoprune.targets.traits import describe

SHORT = Timing(pairs=10, max_pairs=10)


@pytest.fixture
def torch_target() -> Any:
    return find_target("torch")


class Nested(nn.Module):
    """Keyword inputs, one of them None, tied weights, integers in and several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None, scale: torch.Tensor | None = None) -> Any:
        x = self.table(tokens)
        if scale is not None:
            x = x * scale
        logits = self.out(x)
        return {"logits": logits, "class": logits.argmax(-1)}


def test_any_call_comes_back_by_the_names_of_its_inputs(torch_target: Any, tmp_path: Path) -> None:
    net = Nested().eval()
    example = Example.of(
        {"scale": torch.rand(4, 5, 6), "tokens": torch.randint(0, 11, (4, 5)), "mask": None},
    )
    path = torch_target.export(net, example, tmp_path / "net.safetensors")
    feed = {"tokens": np.arange(15).reshape(3, 5) % 11, "scale": np.ones((3, 5, 6), np.float32)}
    logits, classes = torch_target.load(path)(feed)
    expected = net(torch.from_numpy(feed["tokens"]), scale=torch.from_numpy(feed["scale"]))
    np.testing.assert_allclose(logits, expected["logits"].detach().numpy(), atol=1e-5)
    np.testing.assert_array_equal(classes, expected["class"].numpy())
    assert path.stat().st_size < 4 * 11 * 6 + 20_000  # the tied weight is held once


def test_a_pruned_network_is_written_as_it_is_and_its_macs_are_known(
    torch_target: Any, net: nn.Module, example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = pp.prune(net, example.args[0], ratio=0.5)
    path = torch_target.export(pruned.model, example, tmp_path / "net.safetensors")
    whole = torch_target.export(net, example, tmp_path / "whole.safetensors")
    assert path.stat().st_size < 0.8 * whole.stat().st_size
    for name in ("runtime.export", "runtime.measure_file"):  # each has tests of its own, with processes of their own
        monkeypatch.setattr(f"paretoprune.pipeline.{name}", getattr(Stand, name.partition(".")[2])(path))
    assert pp.measure(pruned, example.args[0], target="torch")["macs"].value == pruned.macs
    assert "macs" not in pp.measure(net, example.args[0], target="torch")


class Stand:
    """Stand-ins that take no time."""

    @staticmethod
    def export(path: Path) -> Any:
        return lambda model, example, to, target: path

    @staticmethod
    def measure_file(path: Path) -> Any:
        return lambda *args, **more: {"latency_ms": Measurement.exact(1.0, "ms")}


def test_a_fresh_process_reads_it(torch_target: Any, net: nn.Module, example: Example, tmp_path: Path) -> None:
    path = torch_target.export(net, example, tmp_path / "net.safetensors")
    opener, feed = opener_of(torch_target), feed_of(example)
    fresh = in_fresh_process(path, torch_target.load(path).sample(), [feed], opener=opener)
    np.testing.assert_allclose(fresh.outputs[0][0], torch_target.load(path)(feed)[0], atol=1e-5)
    assert 0 < fresh.grown < 2**26 or not sys.platform.startswith("linux")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_half_as_large_and_computed_as_such(
    torch_target: Any, net: nn.Module, example: Example, tmp_path: Path, precision: str
) -> None:
    if precision not in torch_target.precisions:
        pytest.skip(f"this CPU does not compute {precision}")
    whole = torch_target.export(net, example, tmp_path / "whole.safetensors")
    half = torch_target.export(net, example, tmp_path / "half.safetensors", precision)
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    (given,) = torch_target.load(half)(feed_of(example))
    with torch.no_grad():
        expected = net.eval()(example.args[0]).numpy()
    assert given.dtype == np.float32
    assert 0 < np.abs(given - expected).max() < 0.05 * np.abs(expected).max()


class Large(nn.Module):
    """Beyond what fp16 can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 300.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight * self.weight * 10


def test_what_fp16_cannot_hold_is_refused(torch_target: Any, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="overflows; keep the network in fp32"):
        torch_target.export(Large(), Example.of(torch.rand(4, 3) + 1), tmp_path / "f.safetensors", "fp16")
    assert list(tmp_path.iterdir()) == []


def test_threads_are_set_for_the_call_alone(net: nn.Module, example: Example, tmp_path: Path) -> None:
    two = find_target("torch", threads=2)
    path = two.export(net, example, tmp_path / "net.safetensors")
    runner, before = two.load(path), torch.get_num_threads()
    seen: list[int] = []
    runner._call.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))  # type: ignore[attr-defined]
    runner(feed_of(example))
    assert seen == [2]
    assert torch.get_num_threads() == before


def test_figures_are_taken_on_it_and_macs_are_not_guessed(
    torch_target: Any, net: nn.Module, example: Example, tmp_path: Path
) -> None:
    path = torch_target.export(net, example, tmp_path / "net.safetensors")
    sample = torch_target.load(path).sample()
    assert {k: v.shape for k, v in sample.items()} == {"input": (1, 3, 16, 16)}
    found = measure_file(torch_target, path, sample, path, timing=SHORT)
    assert {"latency_ms", "speedup", "size_bytes", "energy_mj"} <= found.keys()
    assert not {"macs", "energy_analytic_mj"} & found.keys()
    assert len({m.target for m in found.values()}) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layer_is_timed_without_a_file(torch_target: Any, precision: str) -> None:
    if precision not in torch_target.precisions:
        pytest.skip(f"this CPU does not compute {precision}")
    small, large = (
        measure_layer(torch_target, LayerSpec("conv", 16, n, (3, 3), padding=(1, 1), spatial=(16, 16)), precision)
        for n in (8, 128)
    )
    assert 0 < small < large


def test_layers_have_the_shapes_of_their_spec() -> None:
    from paretoprune.targets.torch_layers import Copies

    for spec in (
        LayerSpec("linear", 6, 4, rows=3),
        LayerSpec("conv", 4, 6, (3,), padding=(1,), spatial=(8,), groups=2),
        LayerSpec("conv_transpose", 4, 6, (2, 2), stride=(2, 2), spatial=(4, 4)),
        LayerSpec("conv", 2, 3, (1, 3, 3), spatial=(2, 5, 5)),
    ):
        one, two = Copies(spec, 1), Copies(spec, 2)
        x = torch.from_numpy(spec.example())
        assert tuple(one.layers[0].weight.shape) == spec.weight_shape
        assert one(x).shape == two(x).shape
        assert len(two.layers) == 2


def test_it_says_what_it_is(torch_target: Any) -> None:
    told = describe(torch_target)
    assert told["files"] == ".safetensors"
    assert told["threads"] == "1"
    assert told["precisions"].startswith("fp32")


def test_a_name_that_other_parts_would_take_for_onnx_is_refused(
    torch_target: Any, net: nn.Module, example: Example, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"end in \.safetensors; give 'net\.safetensors'"):
        torch_target.export(net, example, tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=r"end in \.safetensors; give 'net\.safetensors'"):
        pp.export(net, example.args[0], tmp_path / "net.onnx", target="torch")


def test_without_what_reads_graphs_it_says_where_to_find_it() -> None:
    with pytest.raises(UsageError, match=r"paretoprune\.pipeline\.targets"):
        bare_find_target("torch")


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="needs a C.. compiler, and 'no-such-compiler' is not there"):
        find_target("torch-compile")
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match="use target='torch'"):
        find_target("torch-compile")


def test_few_compiled_files_are_kept(
    monkeypatch: pytest.MonkeyPatch, net: nn.Module, example: Example, tmp_path: Path
) -> None:
    """Here without compiling: one file is compiled once while it is in use, and the oldest are let go."""
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: compiled.append(options) or module)
    target = find_target("torch-compile")
    path = target.export(net, example, tmp_path / "net.safetensors")
    target.load(path)
    assert len(compiled) == 1
    assert compiled[0]["fullgraph"]
    for seed in range(4):
        other = nn.Linear(3, seed + 1)
        target.export(other, Example.of(torch.randn(2, 3)), tmp_path / f"{seed}.safetensors")
    target.load(path)
    assert len(compiled) == 6
    assert len(target._kept) == 3  # type: ignore[attr-defined]


def test_another_device_is_moved_to_the_networks(tmp_path: Path) -> None:
    """And a class of the user's own may have settings of its own."""

    class Own(Torch):
        def __init__(self) -> None:
            super().__init__(1, GraphFiles())

        name = "own"

    own = find_target(Own())
    path = own.export(nn.Linear(3, 2), Example.of(torch.randn(2, 3)), tmp_path / "f.safetensors")
    assert own.load(path)({"input": np.ones((5, 3), np.float32)})[0].shape == (5, 2)
