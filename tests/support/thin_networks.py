"""A small network with layers of every kind that can become two thin ones, and images for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 20), nn.Linear(20, 16)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(F.relu(self.up(x)))
        return result


class Small(nn.Module):
    """Two convolutions, a residual block that can go, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.block = nn.ModuleList([Residual()])
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.norm(self.conv1(x))))).mean((2, 3))
        result: Tensor = self.fc2(F.relu(self.fc1(self.block[0](x))))
        return result


def images(count: int = 2, seed: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    mix = torch.randn(3, 3, generator=made)
    return torch.einsum("dc,bchw->bdhw", mix, torch.randn(count, 3, 8, 8, generator=made)) + 0.5


def batches() -> list[Tensor]:
    return [images(32, seed) for seed in (3, 4)]


def made() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Small().train()
        model.norm.momentum = None
        model(images(64, 9))
        return model.eval()
