"""Training the pruned network to answer like the original."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from paretoprune.core.protocols import Task, TrainingHook
from paretoprune.recover.hidden import Hidden
from paretoprune.recover.losses import SoftTargets, frozen_copy
from paretoprune.recover.optimizing import MakeOptimizer, MakeScheduler, sgd
from paretoprune.recover.training import LR, train

TEMPERATURE, ALPHA = 4.0, 0.9
NAME = "distillation"


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    task: Task | None,
    *,
    steps: int,
    lr: float = LR,
    device: str | torch.device = "cpu",
    temperature: float = TEMPERATURE,
    alpha: float = ALPHA,
    optimizer: MakeOptimizer | None = None,
    scheduler: MakeScheduler | None = None,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
    hidden: Hidden | None = None,
    hooks: Sequence[TrainingHook] = (),
) -> float:
    """Train `student` in place for `steps` batches and return the mean loss of the last ones. The last step counts.

    The loss is `SoftTargets`, beside `hidden` where that is given (with a teacher of its own), the loop `train`; there
    the rest is said. The teacher is copied, never changed. Raises PruneError for a loss that is not finite, DataError
    for no batches.
    """
    goal: SoftTargets | Hidden
    if hidden is None:
        goal = SoftTargets(frozen_copy(teacher, torch.device(device)), task, temperature, alpha)
    else:
        goal = replace(hidden, soft=SoftTargets(hidden.teacher, task, temperature, alpha))
    done = train(
        student,
        goal,
        batches,
        steps=steps,
        optimizer=optimizer or sgd(lr),
        scheduler=scheduler,
        device=device,
        seed=seed,
        on_step=on_step,
        hooks=hooks,
        name=NAME,
    )
    return done.loss
