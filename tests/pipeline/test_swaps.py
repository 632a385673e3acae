"""Cheaper activations in a network of inverted residual blocks with squeeze-and-excitation, trained on the digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import paretoprune as pp
from paretoprune.pipeline import reporting
from paretoprune.store.run import RunFolder

WIDTH = 8
Batches = list[tuple[Tensor, Tensor]]


class Inverted(nn.Module):
    """As in EfficientNet: expand, depthwise, squeeze and excite, project."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.SiLU(True))
        self.depth = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.norm, self.act = nn.BatchNorm2d(hidden), nn.SiLU(True)
        self.squeeze, self.excite = nn.Conv2d(hidden, 4, 1), nn.Conv2d(4, hidden, 1)
        self.project = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.depth(self.expand(x))))
        y = y * torch.sigmoid(self.excite(self.act(self.squeeze(y.mean((2, 3), keepdim=True)))))
        result: Tensor = x + self.project(y)
        return result


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.Hardswish())
        self.blocks = nn.Sequential(Inverted(WIDTH, 24), Inverted(WIDTH, 24))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return result


@pytest.fixture(scope="module")
def digits() -> pp.Data:
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 8 - 1
    y = torch.from_numpy(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = order.split([1000, 400, 397])
    sets = [list(zip(x[p].split(100), y[p].split(100), strict=True)) for p in parts]
    return pp.Data(*sets)


def fitted(model: nn.Module, batches: Batches, epochs: int, lr: float = 0.01) -> nn.Module:
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    for x, y in batches * epochs:
        optimiser.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def network(digits: pp.Data) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return fitted(Small(), list(digits.train), 8)


def accuracy(model: nn.Module, batches: Any) -> float:
    with torch.no_grad():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / sum(len(y) for _, y in batches)


@pytest.mark.slow
def test_reconstruction_and_a_little_training_bring_the_accuracy_back(network: nn.Module, digits: pp.Data) -> None:
    before = accuracy(network, digits.test)
    assert before > 0.9
    example = digits.train[0][0][:2]
    bare = pp.prune(network, example, activations={"*": "relu"})
    fit = pp.prune(network, example, activations={"*": "relu"}, calibration=digits.train)
    assert isinstance(fit.model, Small)
    assert not any(isinstance(m, (nn.SiLU, nn.Hardswish)) for m in fit.model.modules())
    assert accuracy(bare.model, digits.test) < before - 0.1
    assert accuracy(fit.model, digits.test) > before - 0.05
    with torch.random.fork_rng(devices=[]):
        again = fitted(fit.model, list(digits.train), 2, lr=0.002)
    assert accuracy(again, digits.test) > before - 0.03


def test_half_of_a_search_has_other_activations_and_the_front_decides(
    quick: None, network: nn.Module, digits: pp.Data, tmp_path: Path
) -> None:
    def run(**options: Any) -> pp.Front:
        given = {"candidates": 2, "steps": 0, "align": 4, "budget": "1 h", "precisions": ("fp32",), **options}
        return pp.search(network, digits.train[0][0][:2], digits, out=tmp_path / "run", **given)

    front = run(activations=["relu"])
    by_name = {c.name: c for c in front.candidates}
    assert {n: dict(c.plan.activations) for n, c in by_name.items() if n != "original"} in (
        {"c01-fp32": {}, "c02-fp32": {"*": "relu"}, "c03-fp32": {"*": "relu"}},
        {"c01-fp32": {"*": "relu"}, "c02-fp32": {}, "c03-fp32": {"*": "relu"}},
    )
    whole = by_name["c03-fp32"]
    assert not whole.plan.kept
    assert whole.macs == front.original.macs
    assert all(c.measurements["latency_ms"].status == "measured" for c in front.candidates)
    loaded = whole.load()
    assert accuracy(loaded, digits.test) == pytest.approx(whole.accuracy, abs=0.006)
    assert "relu takes the place of 7 activations" in str(by_name["c03-fp32"].why())
    method = dict(reporting.report_data(RunFolder.read(tmp_path / "run")).facts.method)
    assert method["Verification"].startswith("0 of 4 files answered 300 validation samples in a process")
    assert "(4 by outputs)" in method["Verification"]
    journal = RunFolder.read(tmp_path / "run").all("seconds")
    run(activations=["relu"])
    assert RunFolder.read(tmp_path / "run").all("seconds") == journal, "it was resumed, not made again"


def test_what_the_network_does_not_have_is_refused_before_any_work(
    searching: Callable[..., pp.Front], tmp_path: Path
) -> None:
    for options, words in (
        ({"activations": ["relu"]}, "names none that relu is cheaper than"),
        ({"activations": ["swish"]}, "'swish' is not one of relu, hardswish"),
        ({"activations": ["relu"], "nested": True}, "nested=True shares"),
    ):
        with pytest.raises(pp.errors.UsageError, match=words):
            searching(**options)
    assert not (tmp_path / "run").exists()
