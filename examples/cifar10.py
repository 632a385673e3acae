"""CIFAR-10 (as JPEG) and a ResNet-20, read from the folder that PARETOPRUNE_DATA names.

    PARETOPRUNE_DATA=/path/to/data paretoprune run examples/cifar10.toml

Train: the first 45,000 training images, cropped and flipped anew in every epoch. Validation: the last 5,000, which the
checkpoint's training has not seen. Calibration: the first 1,024 as they are. Test: the 10,000 test images.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import paretoprune as pp

ARCHIVE = "cifar10_jpeg75.npz"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAIN, CALIBRATION = 45_000, 1_024
BATCH = 128
PAD = 4


class Block(nn.Module):
    """Two 3x3 convolutions. A narrower shortcut is subsampled and filled up with zero channels (option A).

    He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(x + y)


class ResNet(nn.Module):
    """The CIFAR variant: three stages of `blocks` blocks, 6 × blocks + 2 layers."""

    def __init__(self, blocks: int, widths: tuple[int, int, int] = (16, 32, 64), classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = stage(widths[0], widths[0], blocks, 1)
        self.layer2 = stage(widths[0], widths[1], blocks, 2)
        self.layer3 = stage(widths[1], widths[2], blocks, 2)
        self.linear = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = Block(inputs, outputs, stride)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def build(blocks: int = 3) -> nn.Module:
    """ResNet-20 for 3 blocks per stage, ResNet-56 for 9."""
    return ResNet(blocks)


class Batches:
    """Batches of normalised images that can be gone through again and again.

    With `augment`, each pass has its own order, crops and flips, which depend on the seed and the number of the pass
    only.
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.uint8], augment: bool = False) -> None:
        self.images = images
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.augment = augment
        self.passes = 0

    def __len__(self) -> int:
        return -(-len(self.images) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        random = np.random.default_rng((0, self.passes)) if self.augment else None
        self.passes += 1
        order = np.arange(len(self.images)) if random is None else random.permutation(len(self.images))
        for start in range(0, len(order), BATCH):
            index = order[start : start + BATCH]
            images = self.images[index] if random is None else cropped(self.images[index], random)
            yield normalised(images), self.labels[index]


def cropped(images: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """A 32x32 window of the image with 4 black pixels around it, mirrored half of the time."""
    count, side = images.shape[0], images.shape[1]
    padded = np.pad(images, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
    top, left = random.integers(0, 2 * PAD + 1, (2, count))
    rows = top[:, None, None] + np.arange(side)[None, :, None]
    columns = np.where(random.random(count)[:, None] < 0.5, np.arange(side), np.arange(side)[::-1])
    return padded[np.arange(count)[:, None, None], rows, left[:, None, None] + columns[:, None, :]]


def normalised(images: NDArray[np.uint8]) -> Tensor:
    """(n, 32, 32, 3) bytes to (n, 3, 32, 32) floats."""
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def folder_of(given: str | None) -> Path:
    folder = given or os.environ.get("PARETOPRUNE_DATA")
    if not folder:
        raise pp.errors.DataError(f"set PARETOPRUNE_DATA to the folder that holds {ARCHIVE}")
    return Path(folder)


@cache
def decoded(file: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(images (n, 32, 32, 3), labels (n,)) of "train" or "test"; decoded once and kept in memory."""
    if not file.is_file():
        raise pp.errors.DataError(f"there is no {file.name} in the folder that PARETOPRUNE_DATA names")
    with np.load(file, allow_pickle=False) as archive:
        header, body = archive["jpeg_header"].tobytes(), archive[f"{part}_jpeg_body"].tobytes()
        offsets, labels = archive[f"{part}_offsets"], archive[f"y_{part}"]
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    for i in range(len(labels)):
        images[i] = np.asarray(Image.open(io.BytesIO(header + body[offsets[i] : offsets[i + 1]])))
    return images, labels


def data(folder: str | None = None) -> pp.Data:
    """Train, validation, test and calibration; `folder` in place of PARETOPRUNE_DATA."""
    file = folder_of(folder) / ARCHIVE
    x, y = decoded(file, "train")
    return pp.Data(
        train=Batches(x[:TRAIN], y[:TRAIN], augment=True),
        validation=Batches(x[TRAIN:], y[TRAIN:]),
        test=Batches(*decoded(file, "test")),
        calibration=Batches(x[:CALIBRATION], y[:CALIBRATION]),
    )
