"""Training the pruned network to answer like the original."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paretoprune.core.errors import DataError, PruneError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.outputs import main_output
from paretoprune.core.protocols import Task
from paretoprune.recover.inputs import device_of, rounds, to_device
from paretoprune.recover.optimizing import MakeOptimizer, MakeScheduler, sgd, warm_cosine

GRADIENT_NORM = 5.0
"""Longer gradients are cut to this length (Pascanu et al. 2013): large logits make the soft loss steep, and one such
step can ruin a network that was reconstructed well."""


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    task: Task | None,
    *,
    steps: int,
    lr: float = 0.02,
    device: str | torch.device = "cpu",
    temperature: float = 4.0,
    alpha: float = 0.9,
    optimizer: MakeOptimizer | None = None,
    scheduler: MakeScheduler | None = None,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> float:
    """Train `student` in place for `steps` batches and return the mean loss of the last ones. The last step counts.

    alpha · T² · KL(teacher ‖ student) at temperature T plus (1 - alpha) · the task's loss where a batch has labels
    (Hinton et al. 2015). Without a task whose metric is accuracy, or where outputs are not (samples, classes), the mean
    squared error of the outputs stands in for the first term.

    By default SGD with Nesterov momentum 0.9, a tenth of the steps warming up, then a half cosine to zero; give
    `optimizer(parameters)` and `scheduler(optimizer)` for others. A list of batches is gone round in a seeded order;
    another iterable is read again and again as it comes. The teacher is copied, never changed. Parameters that do not
    require gradients stay as they are. The student comes back in eval mode on its own device; torch's random state is
    put back. Raises PruneError for a loss that is not finite, DataError for no batches.
    """
    _check(steps, temperature, alpha)
    place, home = torch.device(device), device_of(student)
    gpus = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        goal = _Goal(_frozen_copy(teacher, place), task, temperature, alpha)
        try:
            student.to(place).train()
            return _train(student, goal, rounds(batches, seed), steps, lr, optimizer, scheduler, on_step)
        finally:
            student.to(home).eval()


def _check(steps: int, temperature: float, alpha: float) -> None:
    if steps < 1:
        raise UsageError(f"steps={steps}: give at least 1, or leave distillation out")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UsageError(f"temperature={temperature}: give a number above 0")
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha={alpha}: give the teacher's share of the loss, 0 to 1")


def _frozen_copy(teacher: nn.Module, place: torch.device) -> nn.Module:
    return copy.deepcopy(teacher).to(place).eval().requires_grad_(False)


def _train(
    student: nn.Module,
    goal: _Goal,
    batches: Iterator[tuple[int | None, Any]],
    steps: int,
    lr: float,
    make_optimizer: MakeOptimizer | None,
    make_scheduler: MakeScheduler | None,
    on_step: Callable[[int, float], None] | None,
) -> float:
    parameters = [p for p in student.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError("the pruned network has no parameter that requires gradients: nothing to distill into")
    optimizer = (make_optimizer or sgd(lr))(parameters)
    scheduler = (make_scheduler or warm_cosine(steps))(optimizer)
    losses: list[float] = []
    for step in range(steps):
        index, batch = next(batches)
        optimizer.zero_grad(set_to_none=True)
        loss = goal.loss(student, index, batch)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise PruneError(
                f"distillation: the loss is {losses[-1]} at step {step}; lower lr={lr} or check the batches"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        length = float(nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM))
        if not math.isfinite(length):
            raise PruneError(
                f"distillation: the gradient is {length} at step {step}; lower lr={lr} or check the batches"
            )
        optimizer.step()
        scheduler.step()
        if on_step is not None:
            on_step(step, losses[-1])
    optimizer.zero_grad(set_to_none=True)
    if not all(bool(torch.isfinite(p).all()) for p in parameters):
        raise PruneError(f"distillation: the weights are not finite after {steps} steps; lower lr={lr}")
    last = losses[-10:]
    return sum(last) / len(last)


@dataclass
class _Goal:
    """The loss against the frozen teacher, whose answers to a list's batches are kept."""

    teacher: nn.Module
    task: Task | None
    temperature: float
    alpha: float
    answers: dict[int, Tensor] = field(default_factory=dict)

    def loss(self, student: nn.Module, index: int | None, batch: Any) -> Tensor:
        device = device_of(student)
        inputs, labels = (to_device(part, device) for part in batch)
        wanted = self._answer(index, inputs)
        output = _call(student, inputs)
        given = main_output(output)
        soft = self._distance(given, wanted)
        if labels is None or self.task is None:
            return soft
        return self.alpha * soft + (1 - self.alpha) * self.task.loss(output, labels)

    def _distance(self, given: Tensor, wanted: Tensor) -> Tensor:
        if given.shape != wanted.shape:
            raise PruneError(f"the student answers {tuple(given.shape)}, the teacher {tuple(wanted.shape)}")
        classes = self.task is not None and self.task.metric == "accuracy" and given.ndim == 2 and given.shape[1] > 1
        if not classes:
            return functional.mse_loss(given.float(), wanted.float())
        t = self.temperature
        student, teacher = ((x.float() / t).log_softmax(dim=1) for x in (given, wanted))
        return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * t * t

    def _answer(self, index: int | None, inputs: Example) -> Tensor:
        if index is not None and index in self.answers:
            return self.answers[index]
        with torch.no_grad():
            answer = main_output(_call(self.teacher, inputs))
        if index is not None:
            self.answers[index] = answer
        return answer


def _call(module: nn.Module, inputs: Example) -> Any:
    try:
        return module(*inputs.args, **inputs.kwargs)
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise DataError(
                "distillation: batch norm needs batches of at least 2 samples; drop or enlarge them"
            ) from error
        raise
