"""A plain training loop over a task's loss, for sparse training and for pruning in rounds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paretoprune import frameworks
from paretoprune import graph as graphs
from paretoprune.core.errors import DataError, ModelError, PruneError, UsageError
from paretoprune.core.protocols import Task, TrainingHook
from paretoprune.graph.model import unwrapped
from paretoprune.recover.inputs import device_of, rounds, to_device
from paretoprune.recover.optimizing import MakeOptimizer, MakeScheduler, sgd, warm_cosine

GRADIENT_NORM = 5.0
"""Longer gradients are cut to this length, as in distillation."""


@dataclass(frozen=True)
class Tuning:
    """How a network is trained. `optimizer(parameters)` and `scheduler(optimizer)` replace SGD and its half cosine."""

    lr: float = 0.02
    optimizer: MakeOptimizer | None = None
    scheduler: MakeScheduler | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        number = isinstance(self.lr, (int, float)) and not isinstance(self.lr, bool)
        if not number or not (0 < self.lr < math.inf):
            raise UsageError(f"lr={self.lr!r}: give a finite number above 0")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise UsageError(f"seed={self.seed!r}: give a whole number of at least 0")


def training_copy(model: Any) -> nn.Module:
    """The caller's network, copied with its weights. Raises ModelError for what cannot be trained here."""
    if frameworks.is_keras(model) or not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}: training needs a torch.nn.Module of your own")
    inner, _ = unwrapped(model)
    graphs.check_model(inner)
    try:
        return copy.deepcopy(inner)
    except (RuntimeError, TypeError, NotImplementedError, AttributeError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0][:200]
        raise ModelError(
            f"{type(inner).__name__} cannot be deep-copied ({type(error).__name__}: {first}): "
            "remove what it holds besides parameters, buffers and plain values"
        ) from error


def tune_(
    module: nn.Module,
    task: Task,
    batches: Iterable[Any],
    steps: int,
    how: Tuning,
    hooks: Sequence[TrainingHook] = (),
    what: str = "training",
    on_step: Callable[[int, float], None] | None = None,
) -> float:
    """Train `module` in place and leave it in eval mode; returns the mean loss of the last steps, penalties left out.

    Torch's random state is put back. Parameters that do not require gradients stay. Raises PruneError that names the
    step for a loss, a gradient or weights that are not finite, DataError for batches without labels.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError(f"{what}: no parameter of the network requires gradients")
    optimizer = (how.optimizer or sgd(how.lr))(parameters)
    scheduler = (how.scheduler or warm_cosine(steps))(optimizer)
    given = rounds(batches, how.seed)
    losses: list[float] = []
    place = device_of(module)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(how.seed)
        module.train()
        try:
            for step in range(steps):
                _, batch = next(given)
                loss = _loss(module, task, batch, f"{what}, step {step}")
                losses.append(_finite(loss, "loss", what, step))
                optimizer.zero_grad(set_to_none=True)
                total = sum((p for h in hooks if (p := h.penalty(step, steps)) is not None), start=loss)
                total.backward()  # type: ignore[no-untyped-call]
                norm = nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
                _finite(norm, "gradient", what, step)
                optimizer.step()
                scheduler.step()
                for hook in hooks:
                    hook.after_step(step, steps)
                if on_step is not None:
                    on_step(step, losses[-1])
        finally:
            optimizer.zero_grad(set_to_none=True)
            module.eval()
    if not all(bool(torch.isfinite(p).all()) for p in parameters):
        raise PruneError(f"{what}: the weights are not finite after step {steps - 1}; lower the learning rate")
    return sum(losses[-10:]) / len(losses[-10:])


def _loss(module: nn.Module, task: Task, batch: Any, where: str) -> Tensor:
    inputs, labels = to_device(batch[0], device_of(module)), to_device(batch[1], device_of(module))
    if labels is None:
        raise DataError(f"{where}: the batch has no labels; training needs (x, y) or a dict with labels")
    try:
        output = module(*inputs.args, **inputs.kwargs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise DataError(f"{where}: batch norm needs batches of at least 2 samples; drop or enlarge them") from error
    if task.check is not None:
        task.check(output, labels)
    return task.loss(output, labels)


def _finite(value: Tensor, name: str, what: str, step: int) -> float:
    number = float(value.detach())
    if not math.isfinite(number):
        raise PruneError(f"{what}: the {name} is {number} at step {step}; lower the learning rate or check the batches")
    return number
