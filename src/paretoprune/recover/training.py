"""The one training loop: any loss, any optimizer, hooks, mixed precision, and a state on disk to go on from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from paretoprune.core.errors import UsageError
from paretoprune.core.protocols import TrainingHook
from paretoprune.recover.inputs import device_of
from paretoprune.recover.loop import Loss, OnStep, Run, Trained, Validate
from paretoprune.recover.optimizing import MakeOptimizer, MakeScheduler, sgd, warm_cosine
from paretoprune.recover.precision import Mixed
from paretoprune.recover.randomness import Stream, private_randomness
from paretoprune.recover.resume import Checkpoint, fingerprint

LR = 0.02
GRADIENT_NORM = 5.0
"""Longer gradients are cut to this length (Pascanu et al. 2013): large logits make the soft loss steep, and one such
step can ruin a network that was reconstructed well."""
CHECKS = 10
"""How often a training is checked where `check_every` does not say."""


class Training(TypedDict, total=False):
    """How to train, apart from what: keywords of `train`, where they are described."""

    optimizer: MakeOptimizer | None
    scheduler: MakeScheduler | None
    hooks: Sequence[TrainingHook]
    device: str | torch.device
    precision: str
    seed: int
    clip: float | None
    on_step: OnStep | None
    checkpoint: str | Path | None
    check_every: int | None
    validate: Validate | None
    patience: int | None


def train(
    module: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    *,
    steps: int,
    optimizer: MakeOptimizer | None = None,
    scheduler: MakeScheduler | None = None,
    hooks: Sequence[TrainingHook] = (),
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    seed: int = 0,
    clip: float | None = GRADIENT_NORM,
    on_step: OnStep | None = None,
    checkpoint: str | Path | None = None,
    check_every: int | None = None,
    validate: Validate | None = None,
    patience: int | None = None,
    name: str = "training",
    about: Mapping[str, Any] | None = None,
) -> Trained:
    """Train `module` in place on `steps` batches; it comes back in eval mode on its own device.

    `optimizer(parameters)` gets the parameters that require gradients, the others stay as they are; by default SGD with
    Nesterov momentum 0.9. `scheduler(optimizer)` steps after every batch; by default a tenth of the steps warming up,
    then a half cosine to zero. Gradients longer than `clip` are cut. `hooks` see core.protocols.TrainingHook. A list of
    batches is gone round in a seeded order; another iterable is read again and again as it comes.

    `precision`: "fp32", "bf16", or on CUDA "fp16": forward and loss under autocast. The caller's random states (torch,
    numpy, Python) are put back; what draws while batches are made has a seeded state of its own.

    Every `check_every` steps and after the last (default: ten times), `validate(module)` is called and the state is
    written to the folder `checkpoint`. A second call with the same arguments goes on from there and ends with the same
    bits; it reads the batches that were used again, so that loaders must give what they gave. The folder of another
    training is refused.

    The last weights are the result, never the best. Only with `patience`, where training stops after so many checks
    without a better value, the weights of the best check are the result.

    `name` begins messages; `about` holds further settings that a resumed run must share. Raises UsageError, DataError
    for batches that do not serve, PruneError for a loss, a gradient or weights that are not finite.
    """
    _check(steps, check_every, validate, patience, clip, name)
    place, home = torch.device(device), device_of(module)
    mixed = Mixed(precision, place)
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError(
            f"{name}: the network has no parameter that requires gradients: nothing to distill into or tune"
        )
    with private_randomness(seed, place):
        begin = fingerprint(module) if checkpoint is not None else ""
        try:
            module.to(place).train()
            made = (optimizer or sgd(LR))(parameters)
            run = Run(
                module, loss, Stream(batches, seed, name), parameters, made, (scheduler or warm_cosine(steps))(made),
                hooks, mixed, steps, clip, name, validate, patience, check_every or max(1, steps // CHECKS),
            )  # fmt: skip
            for hook in hooks:
                if (attach := getattr(hook, "attach", None)) is not None:
                    attach(made)
            if isinstance(run.scheduler, ReduceLROnPlateau) and validate is None:
                raise UsageError(f"{name}: ReduceLROnPlateau needs validate=, a function of the network: its score")
            settings = {"name": name, "steps": steps, "seed": seed, "precision": precision, "network": begin}
            saved = (
                None if checkpoint is None else Checkpoint(checkpoint, settings | run.settings() | dict(about or {}))
            )
            return run.all(saved, on_step)
        finally:
            module.to(home).eval()


def _check(
    steps: int,
    check_every: int | None,
    validate: Validate | None,
    patience: int | None,
    clip: float | None,
    name: str,
) -> None:
    for key, value in (("steps", steps), ("check_every", check_every), ("patience", patience)):
        if value is not None and value < 1:
            raise UsageError(
                f"{name}: {key}={value}; give at least 1" + (", or leave it out" if key != "steps" else "")
            )
    if patience is not None and validate is None:
        raise UsageError(f"{name}: patience={patience} needs validate=, a function of the network that gives its score")
    if clip is not None and not clip > 0:
        raise UsageError(f"{name}: clip={clip}; give the longest gradient above 0, or None for any")
