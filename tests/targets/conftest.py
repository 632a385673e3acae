from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from paretoprune.core.graph import Example
from paretoprune.targets import OnnxRuntime


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.b(torch.relu(self.norm(self.a(x)))))


class Net(nn.Module):
    """A small residual network with a flatten that takes the batch from its input."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.block = Block(width)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.block(torch.relu(self.stem(x))), 4)
        return self.head(self.drop(x.view(x.size(0), -1)))


def make_net(width: int = 16, seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net(width)
        net.block.norm.running_mean.normal_()
        net.block.norm.running_var.uniform_(0.5, 2.0)
    return net


@pytest.fixture
def net() -> Net:
    return make_net()


@pytest.fixture
def build_net() -> Callable[..., Net]:
    return make_net


@pytest.fixture
def example() -> Example:
    return Example.of(torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def target() -> OnnxRuntime:
    return OnnxRuntime()
