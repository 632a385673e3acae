"""What sparse training and pruning in rounds have in common: the caller's network copied, and a task trained on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from paretoprune import frameworks, recover
from paretoprune.core.errors import ModelError, UsageError
from paretoprune.core.protocols import Task, TrainingHook
from paretoprune.graph.model import unwrapped
from paretoprune.pipeline.recovering import private
from paretoprune.recover import Trained, Training
from paretoprune.recover.optimizing import sgd


def training_copy(model: Any) -> nn.Module:
    """The caller's network, copied with its weights. Raises UsageError, ModelError for what cannot be trained here."""
    if not isinstance(model, nn.Module) and not frameworks.is_keras(model):
        raise ModelError(f"the model is a {type(model).__name__}: training needs a torch.nn.Module")
    inner, _ = unwrapped(model)
    return private(inner)


def options(training: Training, lr: float) -> Training:
    """The keywords of `recover.train`, checked where that would find out late; `lr` is of the default optimizer."""
    unknown = sorted(set(training) - set(Training.__annotations__))
    if unknown:
        raise UsageError(
            f"unknown keyword {unknown[0]!r}; training takes {', '.join(sorted(Training.__annotations__))}"
        )
    if training.get("patience") is not None:
        raise UsageError("patience= would end the training before the positions are chosen: leave it out")
    number = isinstance(lr, (int, float)) and not isinstance(lr, bool)
    if not number or not 0 < lr < math.inf:
        raise UsageError(f"lr={lr!r}: give a finite number above 0")
    seed = training.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UsageError(f"seed={seed!r}: give a whole number of at least 0")
    return {**training, "optimizer": training.get("optimizer") or sgd(lr)}


def tune_(
    module: nn.Module,
    task: Task,
    batches: Iterable[Any],
    steps: int,
    training: Training,
    name: str,
    hooks: Sequence[TrainingHook] = (),
) -> Trained:
    """`recover.train` on the task's loss, in place; `hooks` come before those of `training`."""
    every: Training = {**training, "hooks": (*hooks, *training.get("hooks", ()))}
    return recover.train(module, recover.task_loss(task), batches, steps=steps, name=name, **every)
