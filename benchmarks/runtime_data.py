"""Two trained networks and real images on which int8 files are judged."""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from zoo.networks.entry import torchvision_operators

ROOT = Path(__file__).parent.parent
Batches = list[tuple[Tensor, Tensor]]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Judged:
    model: nn.Module
    example: Tensor
    calibration: list[Tensor]
    test: Batches


def resnet20() -> Judged:
    sys.path.insert(0, str(ROOT / "examples"))
    import cifar10

    folder = cifar10.folder_of(None)
    model = cifar10.build(3)
    model.load_state_dict(load_file(folder / "cifar10jpeg_resnet20.safetensors"))
    images, labels = cifar10.decoded(folder / cifar10.ARCHIVE, "train")
    calibration = [x for x, _ in cifar10.Batches(images[:512], labels[:512])]
    test = list(cifar10.Batches(*cifar10.decoded(folder / cifar10.ARCHIVE, "test")))
    return Judged(model.eval(), calibration[0][:2], calibration, test)


def squeezenet() -> Judged:
    """The sample has one image per class and no training part: every fifth image calibrates, the rest is judged."""
    torchvision_operators()
    import torchvision

    folder = Path(os.environ["PARETOPRUNE_DATA"])
    model = torchvision.models.squeezenet1_1(weights=None)
    model.load_state_dict(load_file(folder / "squeezenet1_1_imagenet.safetensors"))
    with np.load(folder / "imagenet_sample1000_256px.npz") as archive:
        data, offsets, labels = archive["jpeg"], archive["offsets"], archive["labels"].astype(np.int64)
    crops = [
        np.asarray(Image.open(io.BytesIO(data[a:b].tobytes())).convert("RGB").crop((16, 16, 240, 240)))
        for a, b in itertools.pairwise(offsets)
    ]
    x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    y = torch.from_numpy(labels)
    seen = torch.arange(len(x)) % 5 == 0
    test = list(zip(x[~seen].split(32), y[~seen].split(32), strict=True))
    return Judged(model.eval(), x[:2], list(x[seen].split(32)), test)


DATA: Mapping[str, Callable[[], Judged]] = {"ResNet-20": resnet20, "SqueezeNet": squeezenet}
