"""`pp.evaluate` of modules, pruned networks, members and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

import paretoprune as pp


def test_a_module_is_judged_and_left_alone(net: nn.Module, data: pp.Data) -> None:
    net.train()
    before, random = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    found = pp.evaluate(
        net,
        data.test,
        metrics=["accuracy", "f1", "loss", "calibration error", "generalisation gap", "robust accuracy (pgd)"],
        train=data.train,
        samples=32,
    )
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert list(found) == ["accuracy", "macro_f1", "loss", "calibration_error", "generalisation_gap", "robust_pgd"]
    assert found["f1"] is found["macro_f1"]
    assert found.absent == {}
    labels = torch.cat([y for _, y in data.test])
    with torch.no_grad():
        taken = torch.cat([net.eval()(x) for x, _ in data.test]).argmax(1)
    assert (found.confusion[:, :4] == confusion_matrix(labels, taken)).all()
    assert found["accuracy"].value == pytest.approx(float((taken == labels).double().mean()))
    assert found.recall_of[2].value == pytest.approx(float((taken == 2)[labels == 2].double().mean()))
    assert found["robust_pgd"].runs == 32
    with pytest.raises(KeyError, match="it was not asked for"):
        found["precision"]


def test_pruned_file_and_original_are_compared(net: nn.Module, data: pp.Data, example: Tensor, tmp_path: Path) -> None:
    pruned = pp.prune(net, example, ratio=0.25)
    file = pp.export(pruned, example, tmp_path / "pruned.onnx")
    metrics = ("accuracy", "loss", "recovery ratio")
    by_module = pp.evaluate(pruned, data.test, metrics=metrics, against=net)
    by_file = pp.evaluate(file, data.test, metrics=metrics, against=net)
    assert by_module["loss"].value == pytest.approx(by_file["loss"].value, rel=1e-4)
    assert by_module.against is not None
    expected = by_module.against["loss"].value / by_module["loss"].value
    assert by_module["recovery ratio"].value == pytest.approx(expected)
    assert by_module["recovery ratio"].low < expected < by_module["recovery ratio"].high
    same = pp.evaluate(net, data.test, metrics=metrics, against=net)["recovery ratio"]
    assert (same.low, same.value, same.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"metrics": ["f2"]}, pp.errors.UsageError, "unknown metric 'f2': there are precision, recall, f1"),
        ({"metrics": "f1"}, pp.errors.UsageError, "give a list of names"),
        ({"metrics": ["recovery ratio"]}, pp.errors.UsageError, "give against="),
        ({"metrics": ["generalisation gap"]}, pp.errors.UsageError, "needs train="),
        ({"metrics": ["robust accuracy (fgsm)"], "eps": 2}, pp.errors.UsageError, "eps=2"),
        ({"metrics": ["robust accuracy (fgsm)"], "samples": 0}, pp.errors.UsageError, "samples=0"),
    ],
)
def test_what_cannot_be_done_is_said(
    net: nn.Module, data: pp.Data, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        pp.evaluate(net, data.test, **options)


def test_a_file_alone_cannot_be_attacked(net: nn.Module, data: pp.Data, example: Tensor, tmp_path: Path) -> None:
    file = pp.export(net, example, tmp_path / "net.onnx")
    with pytest.raises(pp.errors.UsageError, match="an exported file has no gradients"):
        pp.evaluate(file, data.test, metrics=["robust accuracy (fgsm)"])
    noisy = pp.evaluate(file, data.test, metrics=["robust accuracy (noise)"], samples=20)
    assert noisy["robust_noise"].runs == 20
    with pytest.raises(pp.errors.FileError, match="no such file"):
        pp.evaluate(tmp_path / "gone.onnx", data.test)
    with pytest.raises(pp.errors.DataError, match="only once"):
        pp.evaluate(net, iter(data.test))
