"""One small network per kind of axis, for what trains: batch norm and depthwise, recurrent, attention, plain."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


class Convolutions(nn.Module):
    """A batch norm, a depthwise convolution, and a sigmoid that is not 0 at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.point = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.depth(functional.relu(self.norm(self.first(x)))))
        result: Tensor = self.head(torch.sigmoid(self.point(x)).mean((2, 3)))
        return result


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 6)
        self.units = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.units(torch.tanh(self.enter(x)))
        result: Tensor = self.head(states[:, -1])
        return result


class Attention(nn.Module):
    """Heads and the units of a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True, activation="gelu")
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.layer(self.enter(x)).mean(1))
        return result


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(functional.relu(self.first(x)))
        return result


MAKERS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (Convolutions, (2, 5, 5)),
    "recurrent": (Recurrent, (5, 4)),
    "attention": (Attention, (5, 4)),
    "plain": (Plain, (5,)),
}
"""Name -> (class, shape of one sample)."""


def network(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network in eval mode whose batch norms do something, and an example of three samples."""
    make, shape = MAKERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make().eval()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.weight, 1.0, 0.3)
                nn.init.normal_(part.bias, 0.5, 0.3)
        return module, torch.randn(3, *shape)


def batches(name: str, count: int = 4, size: int = 16, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Random inputs with labels that a linear function of them gives."""
    _, shape = MAKERS[name]
    made = torch.Generator().manual_seed(seed)
    xs = torch.randn(count * size, *shape, generator=made)
    labels = (xs.flatten(1) @ torch.randn(xs[0].numel(), 3, generator=made)).argmax(1)
    return list(zip(xs.split(size), labels.split(size), strict=True))
