"""The main job on data that ships with scikit-learn: handwritten digits, a residual network trained on the spot.

Nothing here is tuned to the result: the network is an ordinary one, the search has its defaults, and what it prints is
what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from paretoprune.core.data import Data
from paretoprune.core.errors import FileError
from paretoprune.core.front import Front
from paretoprune.core.progress import Progress
from paretoprune.pipeline.files import load_checkpoint
from paretoprune.pipeline.search import search
from paretoprune.pipeline.threads import free_threads
from paretoprune.store.files import atomic
from paretoprune.store.run import RunFolder

SIDE = 32
BATCH = 64
EPOCHS = 8
TEST, VALIDATION = 360, 360
SEED = 0
BUDGET = "140 s"
LIMITS = ("accuracy drop <= 1 point",)


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2016, basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """Three stages of three blocks on 1×32×32 images: 40 M multiply-accumulates, 1.1 M parameters."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128), blocks: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        layers: list[nn.Module] = []
        inputs = widths[0]
        for stage, outputs in enumerate(widths):
            for block in range(blocks):
                layers.append(Block(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.stem(x))))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def digits() -> dict[str, tuple[Tensor, Tensor]]:
    """train, validation and test: images (n, 1, 32, 32) with mean 0 and spread 1, labels (n,). Disjoint, seeded."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy(raw.images.astype(np.float32) / 16)[:, None]
    x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
    y = torch.from_numpy(raw.target.astype(np.int64))
    order = np.random.default_rng(SEED).permutation(len(y))
    parts = {"test": order[:TEST], "validation": order[TEST : TEST + VALIDATION], "train": order[TEST + VALIDATION :]}
    mean, std = x[parts["train"]].mean(), x[parts["train"]].std()
    return {name: ((x[index] - mean) / std, y[index]) for name, index in parts.items()}


def data(sets: dict[str, tuple[Tensor, Tensor]]) -> Data:
    def batches(name: str) -> list[tuple[Tensor, Tensor]]:
        x, y = sets[name]
        return list(zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True))

    return Data(batches("train"), batches("validation"), batches("test"))


def train(sets: dict[str, tuple[Tensor, Tensor]], on_epoch: Callable[[], None] = lambda: None) -> DigitsNet:
    """SGD with momentum and a half cosine; the last epoch counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = DigitsNet().train()
        x, y = sets["train"]
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
        steps = EPOCHS * math.ceil(len(y) / BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(EPOCHS):
            for index in torch.split(torch.randperm(len(y)), BATCH):
                loss = F.cross_entropy(model(x[index]), y[index])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
            on_epoch()
    return model.eval()


def trained(folder: Path, sets: dict[str, tuple[Tensor, Tensor]], progress: Progress) -> DigitsNet:
    """The network of an earlier call if its checkpoint is whole, else trained now and stored."""
    file = folder / "digits.safetensors"
    if file.exists():
        try:
            return load_checkpoint(DigitsNet(), file).eval()  # type: ignore[return-value]
        except FileError:
            file.unlink()
    with free_threads(), progress.stage("training the network", EPOCHS) as bar:
        model = train(sets, bar.advance)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(file) as part:
        save_file(model.state_dict(), part)
    return model


def store_test_set(folder: Path, sets: dict[str, tuple[Tensor, Tensor]]) -> Path:
    """`test.npz` beside the front: `x` ready for the exported files, `y`, so that anyone can check."""
    arrays: list[NDArray[np.generic]] = [t.numpy() for t in sets["test"]]
    file = folder / "test.npz"
    with atomic(file) as part, part.open("wb") as out:
        np.savez_compressed(out, x=arrays[0], y=arrays[1])
    return file


def run(folder: Path, budget: str, progress: Progress) -> Front:
    """Train, search and store the test set; a second call in the same folder goes on where the first one stopped."""
    RunFolder.refuse_unusable(folder)
    sets = digits()
    model = trained(folder, sets, progress)
    store_test_set(folder, sets)
    example = sets["train"][0][:2]
    return search(model, example, data(sets), limits=LIMITS, budget=budget, out=folder, progress=progress)
