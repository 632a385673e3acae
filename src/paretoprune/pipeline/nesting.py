"""`pp.distill_nested`: several pruned forms of one network recover together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from paretoprune import recover
from paretoprune.core.data import take
from paretoprune.core.errors import SurgeryError, UsageError
from paretoprune.core.outputs import main_output
from paretoprune.core.protocols import Task
from paretoprune.graph import tensors_of
from paretoprune.pipeline.handing_back import with_values
from paretoprune.pipeline.prune import RECALIBRATION_SAMPLES
from paretoprune.pipeline.pruned import Pruned
from paretoprune.pipeline.recovering import distill, options_of, private, steps_of
from paretoprune.recover import Training
from paretoprune.recover.distill import ALPHA, TEMPERATURE
from paretoprune.recover.inputs import device_of, to_device
from paretoprune.recover.nested import BETWEEN, Nested, Sandwich
from paretoprune.recover.randomness import private_randomness
from paretoprune.recover.training import LR
from paretoprune.tasks import task_of

NAME = "the nested network"
POLISH_LR = 0.25
"""Learning rate of the polish over that of the training before it."""


def distill_nested(
    students: Sequence[Pruned],
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    task: str | Task | None = "classification",
    steps: int | None = None,
    epochs: int | None = None,
    between: int = BETWEEN,
    polish: int = 0,
    lr: float = LR,
    temperature: float = TEMPERATURE,
    alpha: float = ALPHA,
    **training: Unpack[Training],
) -> tuple[Pruned, ...]:
    """Train copies of several pruned forms of one network together, each to answer like `teacher`; in the given order.

    One nested network: what training changes of a weight is shared by all students that kept it, so that a step for one
    is a step for those that contain it. In every step the largest, the smallest and `between` others (by their MACs)
    answer the same batch, and the teacher answers it once. Batch-norm statistics are each student's own and are taken
    again at the end. Then each is distilled alone for `polish` steps, at a quarter of `lr`.

    `students`: results of `prune` or `apply` for one and the same network, without low ranks; best with a criterion
    that gives every one of them the same order, and with calibration. The loss and the other keywords are those of
    `distill`; with `checkpoint` the polish keeps its states in folders below it. Worth it for many students and few
    steps: see docs/decisions/0016.

    Raises UsageError, ModelError, DataError, FileError, PruneError as `distill` does.
    """
    _check(students, polish, between)
    place = torch.device(training.get("device", "cpu"))
    meaning = None if task is None else task_of(task)
    order = sorted(range(len(students)), key=lambda i: -students[i].macs)
    nested = Nested([(private(students[i]), students[i].kept) for i in order])
    soft = recover.SoftTargets(recover.frozen_copy(teacher, place), meaning, temperature, alpha)
    about = {"temperature": temperature, "alpha": alpha, "between": between}
    count = steps_of(steps, epochs, batches)
    recover.train(
        nested, Sandwich(soft, between), batches, steps=count, name=NAME, about=about, **options_of(training, lr)
    )
    found = {i: with_values(students[i], nested.tensors(at)) for at, i in enumerate(order)}
    with private_randomness(0, device_of(nested)):
        for at, i in enumerate(order):
            _prove(nested, at, found[i], batches)
            found[i] = _recalibrated(found[i], batches)
    if polish:
        for i, student in found.items():
            how = _under(training, f"polish-{i:02d}")
            found[i] = distill(
                student,
                teacher,
                batches,
                task=task,
                steps=polish,
                lr=lr * POLISH_LR,
                temperature=temperature,
                alpha=alpha,
                **how,
            )
    return tuple(found[i] for i in range(len(students)))


def _under(training: Training, name: str) -> Training:
    """The same training with a checkpoint folder of its own."""
    folder = training.get("checkpoint")
    return training if folder is None else {**training, "checkpoint": Path(folder) / name}


def _check(students: Sequence[Pruned], polish: int, between: int) -> None:
    if not all(isinstance(s, Pruned) for s in students):
        kinds = ", ".join(sorted({type(s).__name__ for s in students}))
        raise UsageError(f"students={kinds}: give results of prune or apply, which know what they kept")
    origins = sorted({s.plan.graph for s in students} - {""})
    if len(origins) > 1:
        raise UsageError(
            f"the students were pruned from different networks (graphs {', '.join(origins)}): give forms of one network"
        )
    if thin := sorted({name for s in students for name in s.plan.ranks}):
        raise UsageError(
            f"'{thin[0]}' is of low rank in one of the students: factors of different networks have nothing to share; "
            "distil it alone"
        )
    for name, value in (("polish", polish), ("between", between)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UsageError(f"{name}={value!r}: give a whole number of at least 0")


def _prove(nested: Nested, at: int, student: Pruned, batches: Iterable[Any]) -> None:
    """What is handed out answers as the member did: its forward really read the shared weights."""
    inputs = to_device(next(take(batches, 1))[0], device_of(nested))
    nested.eval()
    with torch.no_grad():
        theirs = main_output(nested(at, inputs))
        ours = main_output(student.model.eval()(*inputs.args, **inputs.kwargs))
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max())):
        raise SurgeryError(
            f"{type(student.model).__name__} does not read its parameters where they are held, so that it cannot be a "
            "member of a nested network: distil it alone"
        )


def _recalibrated(student: Pruned, batches: Iterable[Any]) -> Pruned:
    """Statistics of batch norms that were sampled seldom lag behind the weights."""
    if not student.program.batch_norms:
        return student
    recover.recalibrate(student.program, batches, samples=RECALIBRATION_SAMPLES)
    return with_values(student, tensors_of(student.program.module))
