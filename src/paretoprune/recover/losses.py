"""What a step of training minimises: the task's loss, the teacher's answers, or the user's own function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paretoprune.core.copies import duplicate
from paretoprune.core.errors import DataError, PruneError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.outputs import main_output
from paretoprune.core.protocols import Task
from paretoprune.recover.inputs import Batch
from paretoprune.recover.loop import Loss

OwnLoss = Callable[[Any, Any], Tensor]
"""`loss(output, batch)`: what the network returned, and the batch as it was given, on the network's device."""
OwnStep = Callable[[nn.Module, Any], Tensor]
"""`step(module, batch)`: calls the network itself."""


def run(module: nn.Module, inputs: Example) -> Any:
    return module(*inputs.args, **inputs.kwargs)


def labelled(task: Task, output: Any, labels: Any) -> Tensor:
    """The task's loss. Where the output is a row for each sample, labels that do not fit it are a DataError."""
    if task.check is not None and main_output(output).ndim == 2:
        task.check(output, labels)
    return task.loss(output, labels)


def task_loss(task: Task) -> Loss:
    """Plain fine-tuning. Raises DataError for a batch without labels, or with labels that do not fit."""

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        if batch.labels is None:
            raise DataError(
                f"a batch has no labels: the loss of task {task.name!r} needs (x, y) or a dict; without them, distill "
                "from the network before pruning, or give a loss of your own"
            )
        return labelled(task, run(module, batch.inputs), batch.labels)

    return loss


def own_loss(function: OwnLoss) -> Loss:
    return lambda module, batch: function(run(module, batch.inputs), batch.given)


def own_step(function: OwnStep) -> Loss:
    return lambda module, batch: function(module, batch.given)


def frozen_copy(teacher: nn.Module, place: torch.device) -> nn.Module:
    """The teacher in eval mode on the student's device; the given one stays as it is."""
    return duplicate(teacher).to(place).eval().requires_grad_(False)


@dataclass
class SoftTargets:
    """alpha · T² · KL(teacher ‖ student) at temperature T plus (1 - alpha) · the task's loss where there are labels.

    Hinton, Vinyals & Dean 2015, "Distilling the knowledge in a neural network", section 2. Without a task whose metric
    is accuracy, or where outputs are not (samples, classes), the mean squared error of the outputs stands in for the
    first term. The frozen teacher's answers to a list's batches are kept.
    """

    teacher: nn.Module
    task: Task | None
    temperature: float
    alpha: float
    answers: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UsageError(f"temperature={self.temperature}: give a number above 0")
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha={self.alpha}: give the teacher's share of the loss, 0 to 1")

    def __call__(self, student: nn.Module, batch: Batch) -> Tensor:
        wanted = self.answer(batch)
        return self.compare(run(student, batch.inputs), wanted, batch.labels)

    def compare(self, output: Any, wanted: Tensor, labels: Any) -> Tensor:
        """The loss of what the student returned."""
        soft = self._distance(main_output(output), wanted)
        if labels is None or self.task is None:
            return soft
        return self.alpha * soft + (1 - self.alpha) * labelled(self.task, output, labels)

    def _distance(self, given: Tensor, wanted: Tensor) -> Tensor:
        if given.shape != wanted.shape:
            raise PruneError(f"the student answers {tuple(given.shape)}, the teacher {tuple(wanted.shape)}")
        classes = self.task is not None and self.task.metric == "accuracy" and given.ndim == 2 and given.shape[1] > 1
        if not classes:
            return functional.mse_loss(given.float(), wanted.float())
        t = self.temperature
        student, teacher = ((x.float() / t).log_softmax(dim=1) for x in (given, wanted))
        return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * t * t

    def answer(self, batch: Batch) -> Tensor:
        if batch.index is not None and batch.index in self.answers:
            return self.answers[batch.index]
        with silent(batch.inputs):
            found = main_output(run(self.teacher, batch.inputs))
        if batch.index is not None:
            self.answers[batch.index] = found
        return found


@contextmanager
def silent(inputs: Example) -> Iterator[None]:
    """Without gradients, and without a trace in the random states: an answer that is kept draws nothing later on."""
    places = {t.device for _, t in inputs.tensors() if t.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(devices=list(places)):
        yield
