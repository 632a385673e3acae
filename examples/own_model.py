"""Your own network, your own data, your own task: what paretoprune needs to know of each, and nothing more.

A sensor on a machine gives three axes of acceleration, 256 samples at a time. The network tells which of four faults it
hears, several at once if need be: imbalance, a worn bearing, looseness, electrical hum. The task is not one that
paretoprune knows, so it is given as two functions, `loss` and `correct`.

    python examples/own_model.py                    # from Python
    paretoprune run examples/recipe.toml            # the same from a recipe
    paretoprune inspect examples/recipe.toml        # what can be pruned
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import paretoprune as pp

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "runs" / "faults.safetensors"
FAULTS = ("imbalance", "bearing", "looseness", "hum")
LENGTH, RATE = 256, 2560.0  # samples, samples per second
BATCH = 64


class Separable(nn.Module):
    """Widen, filter each channel by itself, narrow; each step normalised over all channels, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Conv1d(inputs, 2 * inputs, 1, bias=False)
        self.norm1 = nn.GroupNorm(1, 2 * inputs)
        self.depthwise = nn.Conv1d(2 * inputs, 2 * inputs, 5, stride, 2, groups=2 * inputs, bias=False)
        self.norm2 = nn.GroupNorm(1, 2 * inputs)
        self.project = nn.Conv1d(2 * inputs, outputs, 1)
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm1(self.expand(x)))
        y = self.project(F.silu(self.norm2(self.depthwise(y))))
        return x + y if self.same else y


class FaultNet(nn.Module):
    """(samples, 3, 256) accelerations -> (samples, 4) logits, one for each fault."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, width, 9, 4, 4)
        self.blocks = nn.Sequential(
            Separable(width, width, 1),
            Separable(width, 2 * width, 2),
            Separable(2 * width, 2 * width, 1),
            Separable(2 * width, 2 * width, 1),
        )
        self.hidden = nn.Linear(2 * width, 64)
        self.head = nn.Linear(64, len(FAULTS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.silu(self.stem(x)))
        return self.head(F.relu(self.hidden(x.mean(dim=2))))


def signals(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Accelerations (count, 3, 256) and faults (count, 4), 0.0 or 1.0. Every fault is there in 35 % of the samples.

    The shaft turns at 20 to 40 Hz. Imbalance: a strong line at that speed, across the shaft. Bearing: short bursts of
    ringing, 3.6 times per turn. Looseness: lines at half the speed. Hum: 100 Hz, mostly along the shaft. And noise.
    """
    random = np.random.default_rng(seed)
    t = np.arange(LENGTH) / RATE
    x = random.normal(0, 0.7, (count, 3, LENGTH))
    y = random.random((count, len(FAULTS))) < 0.35
    for i in range(count):
        speed, phase = random.uniform(20, 40), random.uniform(0, 2 * math.pi)
        turn = 2 * math.pi * speed * t + phase
        across = np.array([1.0, random.uniform(0.5, 1.0), 0.1])[:, None]
        x[i] += 0.3 * across * np.sin(turn)
        if y[i, 0]:
            x[i] += random.uniform(0.7, 1.4) * across * np.sin(turn)
        if y[i, 1]:
            since = np.mod(t + phase, 1 / (3.6 * speed))
            x[i] += random.uniform(1.2, 2.4) * np.exp(-since * 300) * np.sin(2 * math.pi * 800 * since)
        if y[i, 2]:
            x[i] += random.uniform(0.5, 1.0) * across * (np.sin(turn / 2) + 0.5 * np.sin(1.5 * turn))
        if y[i, 3]:
            x[i] += random.uniform(0.4, 0.9) * across[::-1] * np.sin(2 * math.pi * 100 * t + 2 * phase)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32))


def data(train: int = 2048) -> pp.Data:
    """Batches (x, y) in lists: anything that can be iterated again will do, a DataLoader for instance."""

    def batches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        x, y = signals(count, seed)
        return list(zip(x.split(BATCH), y.split(BATCH), strict=True))

    return pp.Data(batches(train, seed=1), batches(1024, seed=2), batches(1024, seed=3))


def loss(output: Tensor, labels: Tensor) -> Tensor:
    """The first function: a scalar to be made small."""
    return F.binary_cross_entropy_with_logits(output, labels)


def correct(output: Tensor, labels: Tensor) -> Tensor:
    """The second: a score from 0 to 1 for each sample. Here the share of the four faults that is told rightly."""
    return ((output > 0) == (labels > 0.5)).float().mean(dim=1)


def build(width: int = 32) -> nn.Module:
    """The network without its weights; a recipe fills them in from `checkpoint`."""
    return FaultNet(width)


def trained(width: int = 32, epochs: int = 8) -> nn.Module:
    """The network as it would come out of your own training; kept in runs/, so that a second run finds the same."""
    if CHECKPOINT.exists():
        return pp.load_checkpoint(build(width), CHECKPOINT).eval()
    torch.manual_seed(0)
    model, batches = build(width), list(data().train)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(batches))
    for _ in range(epochs):
        for index in torch.randperm(len(batches)).tolist():
            x, y = batches[index]
            optimiser.zero_grad()
            loss(model(x), y).backward()
            optimiser.step()
            schedule.step()
    CHECKPOINT.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), CHECKPOINT)
    return model.eval()


def main() -> None:
    front = pp.search(
        trained(),
        torch.zeros(2, 3, LENGTH),
        data(),
        task=pp.Task("which faults", loss, correct),
        limits=["accuracy drop <= 2 points"],
        budget="60 s",
        candidates=4,
        out=HERE / "runs" / "own_model",
    )
    for member in front.members:
        print(f"{member.name:14} {member.accuracy:6.1%} {member.latency_ms:7.3f} ms {member.size_bytes / 1e3:7.1f} kB")
    best = front.knee()
    print(f"the knee is {best.name}: {best.path}")


if __name__ == "__main__":
    main()
