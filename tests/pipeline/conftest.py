"""A small convolutional network, its data, and a search whose clock is short and whose costs do not depend on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paretoprune as pp
import paretoprune.targets.cost as cost_room
import paretoprune.targets.measure as measure_room
from paretoprune.core.layers import LayerSpec
from paretoprune.pipeline import artefact, cost_model, verifying
from paretoprune.targets import Timing

CLASSES = 4
QUICK = Timing(pairs=10, max_pairs=10, min_sample_ms=0.2)


class Net(nn.Module):
    """Two inner axes ("conv1" of 16, "conv2" of 32) on 1×8×8 images; 83,072 multiply-accumulates."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.conv2(x))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images that are brighter in the quarter that their label names."""
    made = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=made)
    images = torch.randn(count, 1, 8, 8, generator=made)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[:, row : row + 4, column : column + 4] += 1.2
    # The means of the quarters alone would not be seen by a network that averages: mark them.
    return images * (1 + labels[:, None, None, None] / CLASSES), labels


def batches(count: int, seed: int, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    images, labels = samples(count, seed)
    return list(zip(images.split(size), labels.split(size), strict=True))


def trained() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net().train()
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        for x, y in batches(256, 1, size=64) * 10:
            loss = F.cross_entropy(net(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


@pytest.fixture(scope="session")
def weights() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trained().state_dict().items()}


@pytest.fixture
def net(weights: dict[str, Tensor]) -> nn.Module:
    """Trained, in eval mode; a fresh one for each test."""
    model = Net()
    model.load_state_dict(weights)
    return model.eval()


@pytest.fixture(scope="session")
def make_net(weights: dict[str, Tensor]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Net()
        model.load_state_dict(weights)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def example() -> Tensor:
    return samples(2, 9)[0]


@pytest.fixture(scope="session")
def data() -> pp.Data:
    return pp.Data(batches(256, 1, size=64), batches(96, 2), batches(96, 3))


def _cost_of(target: Any, spec: LayerSpec, precision: str = "fp32") -> float:
    """In place of a measurement: proportional to the weights, with a small constant."""
    del target, precision
    taps = 1
    for n in (*spec.kernel, spec.inputs, spec.outputs):
        taps *= n
    return 1e-3 + 1e-6 * taps


@pytest.fixture(scope="session")
def costs() -> Callable[..., float]:
    """In place of `measure_layer`: what a busy clock says of tiny layers would decide which candidates there are."""
    return _cost_of


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short timings, no fresh processes, costs that do not depend on the machine. Every figure is still taken."""
    monkeypatch.setattr(artefact, "timing", lambda threads: QUICK)
    monkeypatch.setattr(measure_room, "peak_memory", lambda *args, **options: None)
    monkeypatch.setattr(verifying, "opener_of", lambda target: None)
    monkeypatch.setattr(cost_room, "measure_layer", _cost_of)
    monkeypatch.setattr(cost_model, "LEVELS", ())


@pytest.fixture
def searching(quick: None, net: nn.Module, example: Tensor, data: pp.Data, tmp_path: Path) -> Callable[..., pp.Front]:
    """`pp.search` with a small budget of everything; keywords replace."""

    def run(**options: Any) -> pp.Front:
        given = {
            "model": net,
            "example": example,
            "data": data,
            "out": tmp_path / "run",
            "candidates": 2,
            "steps": 0,
            "align": 4,
            "precisions": ("fp32",),
            **options,
        }
        return pp.search(given.pop("model"), given.pop("example"), given.pop("data"), **given)

    return run


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
