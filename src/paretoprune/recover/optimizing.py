"""The optimizer and the schedule that training uses unless told otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

MakeOptimizer = Callable[[Sequence[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]
WARMUP = 0.1
WEIGHT_DECAY = 5e-4


def sgd(lr: float) -> MakeOptimizer:
    """Nesterov momentum; weight decay on matrices and filters only."""

    def make(parameters: Sequence[nn.Parameter]) -> Optimizer:
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.SGD([g for g in groups if g["params"]], lr=lr, momentum=0.9, nesterov=True)

    return make


def warm_cosine(steps: int) -> MakeScheduler:
    """A tenth of the steps rising linearly, then a half cosine to zero (Loshchilov & Hutter 2017)."""
    warm = max(1, round(WARMUP * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    def make(optimizer: Optimizer) -> LRScheduler:
        return LambdaLR(optimizer, factor)

    return make


def first_lr(optimizer: Optimizer) -> float:
    """The learning rate that was asked for, before any schedule."""
    group = optimizer.param_groups[0]
    return float(group.get("initial_lr", group["lr"]))
