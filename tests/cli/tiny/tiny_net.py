"""A network of a million multiply-accumulates, which widths make faster also on a busy machine, and its data: what a
user would put beside a recipe.
"""

import os
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

SIDE, CLASSES = 24, 4


class Tiny(nn.Module):
    def __init__(self, name="first"):
        super().__init__()
        self.add_module(name, nn.Conv2d(1, 16, 3, 2, 1))
        self.name = name
        self.second = nn.Conv2d(16, 48, 3, 1, 1)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x):
        x = F.relu(getattr(self, self.name)(x))
        return self.head(F.relu(self.second(x)).mean(dim=(2, 3)))


class Branching(Tiny):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def build(nan=False, branch=False, name="first", token=None, fail=False):
    if fail:
        raise KeyError("the file that\n\x1b[31mwas not there")
    torch.manual_seed(0)
    model = (Branching if branch else Tiny)(name)
    if nan:
        with torch.no_grad():
            model.second.weight[0, 0, 0, 0] = float("nan")
    return model


def build_number():
    return 3


def example():
    return torch.zeros(2, 1, SIDE, SIDE)


class Stubborn:
    """A loader that swallows Ctrl-C, as C code may."""

    def __iter__(self):
        print("stubborn", file=sys.stderr, flush=True)
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                print("swallowed", file=sys.stderr, flush=True)


def batches(seed, count, side=SIDE, labels=CLASSES):
    """Bright quarters: the label says which."""
    random = np.random.default_rng(seed)
    y = random.integers(0, labels, 32 * count)
    x = random.normal(0, 0.5, (32 * count, 1, side, side)).astype(np.float32)
    for i, label in enumerate(y % CLASSES):
        top, left = divmod(int(label), 2)
        half = side // 2
        x[i, 0, half * top : half * (top + 1), half * left : half * (left + 1)] += 1
    return list(zip(torch.from_numpy(x).split(32), torch.from_numpy(y).split(32), strict=True))


def data(fault=None, token=None):
    train = batches(1, 4)
    if fault == "empty":
        train = []
    if fault == "shape":
        train = batches(1, 4, side=10)
    if fault == "labels":
        train = batches(1, 4, labels=9)
    if fault == "once":
        train = iter(train)
    if fault == "raises":
        raise OSError(f"no such table {token}")
    if fault == "stubborn":
        train = Stubborn()
    return {"train": train, "validation": batches(2, 2), "test": batches(3, 2)}


class Meter:
    """2 W, and 10 W more for each core that this process keeps busy."""

    name = "bench"
    period_s = 0.002

    def joules(self):
        return 2.0 * time.perf_counter() + 10.0 * time.process_time()


def loss(output, labels):
    return F.cross_entropy(output, labels)


def correct(output, labels):
    return (output.argmax(1) == labels).float()


def command(command):
    """What a hostile recipe would like to call."""
    os.system(command)


def broken_target():
    """ONNX Runtime that exports the original and nothing else."""
    from paretoprune.core.errors import TargetError
    from paretoprune.targets import OnnxRuntime

    class Broken(OnnxRuntime):
        def export(self, module, example, path, precision="fp32", calibration=None):
            if not path.name.startswith(("original", "fp32", "int8")):
                raise TargetError("this runtime has had enough")
            return super().export(module, example, path, precision, calibration)

    return Broken()
