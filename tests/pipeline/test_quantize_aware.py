"""Training with the rounding of the file, and the file that agrees with what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import paretoprune as pp
from paretoprune import graph as graphs
from paretoprune.core.errors import DataError, ExportMismatchError, PlanError, UsageError
from paretoprune.core.graph import Example
from paretoprune.pipeline import quantize_aware as module_under_test
from paretoprune.pipeline.fake_graph import fake_graph
from paretoprune.targets import find_target
from paretoprune.targets.macs import workload_of_file

Batches = list[tuple[Tensor, Tensor]]


class Net(nn.Module):
    """A residual block, a strided convolution with groups, a pooling that shares its input's grid, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.down, self.c = nn.Conv2d(16, 16, 3, stride=2, groups=4), nn.BatchNorm2d(16)
        self.head = nn.Linear(16 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.b(self.a(x)))
        x = nn.functional.max_pool2d(torch.relu(self.c(self.down(x))), 2)
        answer: Tensor = self.head(x.flatten(1))
        return answer


def patterns(count: int, seed: int) -> Batches:
    """Images of five classes."""
    shapes = torch.randn(5, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        y = torch.randint(0, 5, (32,), generator=generator)
        batches.append((0.5 * shapes[y] + torch.randn(32, 3, 14, 14, generator=generator), y))
    return batches


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pp.finetune(Net(), patterns(20, 1), steps=60, lr=0.05).eval()


def accuracy(run: Any, batches: Batches) -> float:
    return float(np.mean(np.concatenate([np.asarray(run(x)).argmax(1) == y.numpy() for x, y in batches])))


def of_file(path: Path, target: str = "onnxruntime") -> Any:
    runner = find_target(target).load(path)
    return lambda x: runner({"input": x.numpy()})[0]


def of_module(module: nn.Module) -> Any:
    return lambda x: module(x).detach().numpy()


def test_batch_norms_are_folded_under_the_names_of_the_file(net: nn.Module) -> None:
    x = patterns(1, 3)[0][0]
    program = graphs.trace(net, x[:2]).program
    folded = graphs.fold_norms(program.module)
    assert "batch_norm" not in str(folded.graph)
    assert {"stem.bias", "a.bias", "down.bias"} <= graphs.tensors_of(folded).keys()
    torch.testing.assert_close(folded(x), net(x), atol=1e-4, rtol=1e-4)
    assert "batch_norm" in str(program.module.graph)  # the given one is as it was


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_the_file_agrees_with_what_was_trained(net: nn.Module, tmp_path: Path, target: str) -> None:
    if target == "openvino":
        pytest.importorskip("nncf", reason="needs the extra openvino")
    test = patterns(8, 9)
    done = pp.quantize_aware(
        net, test[0][0][:2], patterns(10, 2), tmp_path / "net.onnx", steps=12, target=target, lr=0.01
    )
    assert done.path == tmp_path / "net.onnx"
    assert done.notes == ()
    assert done.agreement is not None
    assert done.agreement >= 0.99
    ours, theirs = of_module(done.model), of_file(done.path, target)
    differ = np.concatenate([np.abs(ours(x) - theirs(x)).ravel() for x, _ in test])
    step = max(float(np.ptp(ours(test[0][0]))) / 255, 1e-6)
    assert np.quantile(differ, 0.95) <= 2 * step
    assert np.mean([(ours(x).argmax(1) == theirs(x).argmax(1)).mean() for x, _ in test]) >= 0.99
    share = 0.2 if target == "onnxruntime" else 0.4  # OpenVINO's kernels round on the way
    assert np.mean(differ) < share * np.mean(np.abs(ours(test[0][0]) - of_module(net)(test[0][0])))


def test_it_computes_in_eight_bits_and_training_mends_what_rounding_broke(net: nn.Module, tmp_path: Path) -> None:
    """Signs instead of weights do harm; training takes some of it back, and the file has it."""
    x, test = patterns(1, 3)[0][0][:2], patterns(10, 9)
    bits = {"a.weight": "binary", "down.weight": "binary"}
    before = pp.quantize_aware(net, x, patterns(10, 2), tmp_path / "a.onnx", steps=0, bits=bits)
    after = pp.quantize_aware(net, x, patterns(20, 2), tmp_path / "b.onnx", steps=60, bits=bits, lr=0.01)
    work = workload_of_file(after.path)
    assert work is not None
    assert work.macs_by_precision.keys() == {"int8"}
    assert before.loss is None
    assert after.loss is not None
    assert accuracy(of_file(after.path), test) > accuracy(of_file(before.path), test) + 0.02
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(after.path).graph.initializer}
    assert len(np.unique(np.abs(stored["a.weight_quantized"]))) == 1
    assert len(np.unique(np.abs(stored["head.weight_quantized"]))) > 10


def test_layers_that_stay_in_fp32_have_no_quantizer(net: nn.Module) -> None:
    x = patterns(2, 3)[0][0]
    fake = fake_graph(graphs.trace(net, x[:2]), find_target("onnxruntime"), [Example.of(x)], {"head.*": "fp32"})
    assert fake.weights.keys() == {"stem.weight", "a.weight", "down.weight"}
    assert fake.missed == ()


def test_the_given_network_is_not_changed(net: nn.Module, tmp_path: Path) -> None:
    before = {n: t.clone() for n, t in net.state_dict().items()}
    pp.quantize_aware(net, patterns(1, 3)[0][0][:2], patterns(3, 2), tmp_path / "net.onnx", steps=2)
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())


def test_a_pruned_network_can_be_given(net: nn.Module, tmp_path: Path) -> None:
    x = patterns(1, 3)[0][0][:2]
    pruned = pp.sparsify(pp.prune(net, x, ratio=0.25, axes="all"), x, pattern="4x1", sparsity=0.3)
    done = pp.quantize_aware(pruned, x, patterns(3, 2), tmp_path / "net.onnx", steps=2)
    assert done.snr_db > 25
    before, after = (graphs.tensors_of(m)["a.weight"].detach() for m in (pruned.model, done.model))
    assert torch.equal(before == 0, after == 0)
    assert int((after == 0).sum()) > 0.29 * after.numel()


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"steps": -1}, UsageError, "steps=-1"),
        ({"train": []}, DataError, "no batch"),
        ({"bits": {"b": "binary"}}, PlanError, "'b' is to be binary, and fits no weight"),
        ({"bits": {"a.wieght": "fp32"}}, PlanError, "near it: a.weight"),
    ],
)
def test_what_means_nothing_is_refused(
    net: nn.Module, tmp_path: Path, given: dict[str, Any], error: type[Exception], says: str
) -> None:
    asked = {"train": patterns(1, 2), "steps": 0, **given}
    with pytest.raises(error, match=says):
        pp.quantize_aware(net, patterns(1, 3)[0][0][:2], path=tmp_path / "net.onnx", **asked)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_disagrees_is_rejected(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 38 for trained int8: the file is written with other scales than were trained."""
    true = module_under_test.rewritten
    monkeypatch.setattr(
        module_under_test, "rewritten", lambda m, s, w, b: true(m, {k: v / 8 for k, v in s.items()}, w, b)
    )
    with pytest.raises(ExportMismatchError, match=r"keeps -?\d.* dB of what the trained module answers"):
        pp.quantize_aware(net, patterns(1, 3)[0][0][:2], patterns(2, 2), tmp_path / "net.onnx", steps=0)
    assert list(tmp_path.iterdir()) == []
