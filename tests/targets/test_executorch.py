"""ExecuTorch as a target; its conformance is in test_conformance.py. Run where the extra is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from paretoprune.core.errors import FileError, TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.pipeline.targets import find_target
from paretoprune.targets import LayerSpec, Timing, measure_file, measure_layer
from paretoprune.targets.executorch_runner import About, packed

NEEDED = "needs the extra executorch: pip install 'paretoprune[executorch]'"


@pytest.fixture(scope="module")
def executorch() -> Any:
    pytest.importorskip("executorch", reason=NEEDED)
    return find_target("executorch")


def test_where_it_is_not_installed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch.runtime", None)
    with pytest.raises(UsageError, match=r"needs executorch.runtime, .*pip install 'paretoprune\[executorch\]'"):
        find_target("executorch")


class Two(nn.Module):
    """Two inputs, one of them integers; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, tokens: torch.Tensor, extra: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.table(tokens).mean(1) + extra
        return self.out(x), x


@pytest.mark.slow
def test_several_inputs_pieces_and_figures(executorch: Any, tmp_path: Path) -> None:
    net = Two().eval()
    example = Example.of((torch.randint(0, 11, (4, 5)), torch.randn(4, 6)))
    path = executorch.export(net, example, tmp_path / "two.pte")
    runner = executorch.load(path)
    rng = np.random.default_rng(0)
    feed = {"input_0": rng.integers(0, 11, (70, 5)), "input_1": rng.standard_normal((70, 6)).astype(np.float32)}
    given = runner(feed)
    with torch.no_grad():
        expected = net(*(torch.from_numpy(array) for array in feed.values()))
    for a, b in zip(given, expected, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-5)
    with pytest.raises(TargetError, match="batches of different sizes"):
        runner({**feed, "input_0": feed["input_0"][:3]})
    found = measure_file(executorch, path, runner.sample(), timing=Timing(pairs=10, max_pairs=10), memory=True)
    assert "macs" not in found
    assert found["memory_bytes"].value < 2**26 or not sys.platform.startswith("linux")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_layer_is_timed_alone(executorch: Any, precision: str) -> None:
    spec = LayerSpec("conv", 16, 16, (3, 3), padding=(1, 1), spatial=(16, 16))
    assert measure_layer(executorch, spec, precision) > 0


@pytest.mark.slow
def test_int8_needs_data(executorch: Any, tmp_path: Path) -> None:
    example = Example.of(torch.randn(4, 3))
    with pytest.raises(TargetError, match="give calibration="):
        executorch.export(nn.Linear(3, 2), example, tmp_path / "f.pte", "int8")
    with pytest.raises(UsageError, match="calibration gave no batch"):
        executorch.export(nn.Linear(3, 2), example, tmp_path / "f.pte", "int8", [])


@pytest.mark.slow
def test_a_program_that_the_runtime_refuses(executorch: Any, tmp_path: Path) -> None:
    path = tmp_path / "f.pte"
    path.write_bytes(packed(b"no program" * 100, About((("input", (32, 3), "float32", True),), (True,), 32)))
    with pytest.raises((TargetError, FileError), match="cannot load"):
        executorch.load(path)
