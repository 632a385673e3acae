"""The narrow doors between rooms, for our own parts and for a user's plug-ins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from paretoprune.core.axis import Role
from paretoprune.core.graph import Example

if TYPE_CHECKING:
    import torch
    from torch import nn


Need = Literal["gradients", "inputs", "activations", "gates", "scales", "elimination"]
"""What a criterion may ask to see besides weights; each is a field of View."""


@dataclass(frozen=True)
class View:
    """What a criterion sees of one axis with P positions. Every tensor has P rows; what was not asked for is None.

    `weight` (P, rest): the parameters of the criterion's role, side by side.
    `grad` (P, rest): need "gradients", the loss's gradient by those parameters, of one batch.
    `inputs` (P, rest): need "inputs", the root mean square of what each of those weights is multiplied with.
    `activations` (P, samples, rows, columns): need "activations", what enters one contraction that sums over the axis.
    `gates` (P, samples): need "gates", the derivative of each sample's loss by a gate of 1 on the position.
    `scale` (P, n): need "scales", the factors of the batch norms on the axis.
    `losses` (P,): need "elimination", the share of the outputs' energy that the position's removal adds to what
    least squares loses, when positions go in the order of elimination; never falling along that order.
    `axis`: its id, for messages and seeds.
    """

    weight: torch.Tensor
    grad: torch.Tensor | None = None
    inputs: torch.Tensor | None = None
    activations: torch.Tensor | None = None
    gates: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    losses: torch.Tensor | None = None
    axis: str = ""


class Criterion(Protocol):
    """A figure for every position of an axis.

    `members`: whether it looks at parameters that make the axis ("out") or sum over it ("in").
    `needs`: what it asks to see besides weights. With "gradients" it is scored once per calibration batch, with
    "activations" once per contraction that sums over the axis; the scores are averaged.
    `remove`: which end goes first. The scorer turns "high" round, so that what leaves it is larger for what is kept.
    `comparable`: scores of different axes are in one unit (the loss, say); where not, they are normalised for ranking.
    """

    name: str
    members: Role
    needs: frozenset[Need]
    remove: Literal["low", "high"]
    comparable: bool

    def score(self, view: View) -> torch.Tensor:
        """(P,) finite; the sign is free."""
        ...


@dataclass(frozen=True)
class Task:
    """What a batch means. A user's own task is two functions.

    `loss(output, labels)` gives a scalar tensor. `correct(output, labels)` gives a tensor of per-sample scores in
    0 to 1 (for classification 0 or 1): their mean is the task's metric, larger is better.
    `check(output, labels)` raises DataError for labels that do not fit the output.
    """

    name: str
    loss: Callable[[Any, Any], torch.Tensor]
    correct: Callable[[Any, Any], torch.Tensor]
    metric: str = "accuracy"
    check: Callable[[Any, Any], None] | None = None


class TrainingHook(Protocol):
    """Joins a training loop: a penalty on the loss, work after each step, a state that is saved with the loop's.

    `step` counts from 0 to `steps` - 1. One with a method `attach(optimizer)` is given the optimizer before the first.
    """

    def penalty(self, step: int, steps: int) -> torch.Tensor | None:
        """A scalar that is added to the loss of this step, or None."""
        ...

    def after_step(self, step: int, steps: int) -> None:
        """Called once the optimizer has stepped."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only, so that it can be saved without pickle."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Runner(Protocol):
    """A loaded exported file. Inputs by name as numpy arrays; outputs in the order of the model's."""

    input_names: tuple[str, ...]

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]: ...


class Target(Protocol):
    """A runtime on this machine with fixed settings (threads, batch 1).

    What it may say besides, for instance how its files' names end where they are not ONNX: `targets.traits`.
    `precisions`: names of core.precision.PRECISIONS that it can write, "fp32" first. One that writes single layers in
    another precision takes `bits` in `export`, a mapping of weight name or pattern to precision.
    """

    name: str
    threads: int

    @property
    def precisions(self) -> tuple[str, ...]: ...

    def fingerprint(self) -> Mapping[str, str]:
        """CPU model, instruction sets, runtime and versions, threads."""
        ...

    def export(
        self,
        module: nn.Module,
        example: Example,
        path: Path,
        precision: str = "fp32",
        calibration: Iterable[Example] | None = None,
    ) -> Path:
        """Write a file, reload it, compare it with `module`; raises ExportMismatchError with the largest error."""
        ...

    def load(self, path: Path) -> Runner: ...


class Counter(Protocol):
    """A meter that counts energy. A user's own is this one small class.

    `joules()`: since any moment that stays the same; it never falls. What the meter sees decides what is counted: a
    bench supply sees the whole board. A meter with new readings only every so many seconds says so in `period_s`.
    """

    name: str

    def joules(self) -> float: ...


class PowerSensor(Protocol):
    """A meter that gives the momentary power, or one like this: it is sampled (every `period_s`, else 20 times a
    second) in a thread of its own while the network runs, and integrated by the trapezium rule.
    """

    name: str

    def watts(self) -> float: ...


Meter = Counter | PowerSensor


@dataclass(frozen=True)
class Choice:
    """One decision of the search: the widths an axis may keep (ascending), with what is known of each.

    `error[i]` is the damage of `widths[i]` taken alone, `cost[i]` what the network costs with it, in the searched unit.
    """

    axis: str
    widths: tuple[int, ...]
    error: tuple[float, ...]
    cost: tuple[float, ...]


@dataclass(frozen=True)
class Proposal:
    """An answer to `ask`: widths by axis id."""

    number: int
    widths: Mapping[str, int]


class Searcher(Protocol):
    """Ask and tell. Objectives are minimised: (error, cost)."""

    name: str

    def ask(self) -> Proposal | None:
        """The next proposal, or None when the searcher has nothing left to try."""
        ...

    def tell(self, proposal: Proposal, objectives: Sequence[float] | None) -> None:
        """The objectives of a proposal, or None if it failed."""
        ...

    def replay(self, past: Iterable[tuple[Mapping[str, int], Sequence[float] | None]]) -> None:
        """Before the first `ask`: the (widths, objectives or None) that an earlier run was told, in order.

        Those points count towards the budget and are not proposed again.
        """
        ...


FloatArray = NDArray[np.float64]
