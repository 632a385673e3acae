"""`pp.prune_gradually`: prune a bit, tune, evaluate, adjust, again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from paretoprune import criteria
from paretoprune import graph as graphs
from paretoprune.core.axis import Axis, Scores
from paretoprune.core.data import Data
from paretoprune.core.errors import UsageError
from paretoprune.core.measurement import Measurement
from paretoprune.core.plan import Plan
from paretoprune.core.protocols import Criterion, Target, Task
from paretoprune.graph import TracedGraph
from paretoprune.pipeline import choose
from paretoprune.pipeline.prune import carry_out, score
from paretoprune.pipeline.pruned import Pruned
from paretoprune.pipeline.ranking import normalised
from paretoprune.pipeline.rounds import DOWN, FASTEST, SLOWEST, Round, adjusting, noise_of, pace
from paretoprune.pipeline.runtime import measure
from paretoprune.pipeline.targets import find_target
from paretoprune.pipeline.tuning import options, training_copy, tune_
from paretoprune.recover import Training
from paretoprune.recover.inputs import device_of, to_device
from paretoprune.recover.sparse import schedule_of
from paretoprune.recover.training import LR
from paretoprune.tasks import check_data, evaluate, task_of

MORE_ROUNDS = 2
"""With adjusting, at most this many times the planned rounds are run."""
DROP = 0.01
"""Drop over the whole way that adjusting aims at where no limit was given: one point."""
FIGURES = ("latency_ms", "energy_mj")


@dataclass(frozen=True)
class Gradual:
    """`pruned`: the last accepted network, tuned. `original`: accuracy of the given network on the validation set.

    `stopped`: "target", "drop limit" (the smallest amount loses too much) or "rounds" (they were used up on the way).
    """

    pruned: Pruned
    history: tuple[Round, ...]
    original: float
    stopped: str

    @property
    def accuracy(self) -> float:
        """Share of the validation set, after the last accepted round."""
        return next((r.accuracy for r in reversed(self.history) if r.accepted), self.original)


def prune_gradually(
    model: nn.Module,
    example: Any,
    data: Data,
    *,
    ratio: float | Mapping[str, float] | None = None,
    macs: float | None = None,
    rounds: int = 8,
    steps_per_round: int,
    schedule: str | Callable[[float], float] = "cubic",
    adjust: bool = True,
    max_drop: float | None = None,
    criterion: str | Criterion = "magnitude",
    axes: choose.AxisChoice = "inner",
    ignore: Sequence[str] = (),
    align: int = 1,
    floor: int = 1,
    task: str | Task = "classification",
    target: str | Target | None = None,
    dynamic: Mapping[str, Iterable[int]] | None = None,
    on_round: Callable[[Round], None] | None = None,
    lr: float = LR,
    **training: Unpack[Training],
) -> Gradual:
    """The classic loop of pruning (Han et al. 2015; Molchanov et al. 2017, algorithm 1); `model` is not changed.

    In each of `rounds`, positions are removed up to schedule(time) of the way to `ratio` or `macs` (as in `pp.prune`),
    the smaller network is trained for `steps_per_round` batches of `data.train`, and evaluated on `data.validation`
    (`data.test` is never read). "cubic": Zhu & Gupta 2017, eq. 1; also "linear", "cosine", "constant", or a function.

    `max_drop`: the accuracy that may be lost, as a share (0.01 is one point). A round that loses more is taken back.
    `adjust`: after each round the amount changes by ½ to 1.5: up where the round lost less than its part of the drop
    that was left, or nothing beyond the noise of the validation set; down where it lost more. A round that saved more
    cost per amount than the rounds before it may lose more. Costs are the MACs and, with a `target`, latency and energy
    measured there every round. Up to twice as many rounds are run, and without `max_drop` the target is reached in
    them. Without adjusting, the first round beyond `max_drop` ends the loop.

    `lr` is of the default optimizer; further keywords (`optimizer`, `scheduler`, `device`, `precision`, `seed` …) as in
    `recover.train`, for every round anew.

    Raises ModelError, CaptureError, UsageError, PlanError, DataError, SurgeryError, TargetError, and PruneError that
    names the round and step where training is not finite.
    """
    _check(ratio, macs, rounds, steps_per_round, max_drop, adjust)
    how = options(training, lr)
    if how.get("checkpoint") is not None:
        raise UsageError("checkpoint= holds one training, and every round is another: leave it out")
    scorer, meaning = criteria.criterion_of(criterion), task_of(task)
    runtime = None if target is None else find_target(target)
    dims = {name: tuple(given) for name, given in (dynamic or {}).items()}
    net = training_copy(model).eval()
    traced = graphs.trace(net, example, dims)
    module = traced.program.module
    with torch.no_grad():
        checked = check_data(data, traced.example, meaning, predict=lambda x: module(*x.args, **x.kwargs), dynamic=dims)
    chosen = choose.chosen_axes(traced, axes, ignore)
    goal = _Goal(chosen, ratio, macs, align, floor)
    goal.widths(traced, 1.0, None)
    work = _Work(net, traced, goal, scorer, meaning, checked.data, how, runtime)
    loop = _Loop(work, rounds, steps_per_round, schedule_of(schedule), adjust, max_drop)
    return loop.run(on_round or (lambda _: None))


def _check(ratio: Any, macs: float | None, rounds: int, steps: int, max_drop: float | None, adjust: bool) -> None:
    if (ratio is None) == (macs is None):
        raise UsageError(f"ratio={ratio!r}, macs={macs!r}: give exactly one of them, the target of the last round")
    choose.check_positive(rounds=rounds, steps_per_round=steps)
    if not isinstance(adjust, bool):
        raise UsageError(f"adjust={adjust!r}: give True or False")
    number = isinstance(max_drop, (int, float)) and not isinstance(max_drop, bool)
    if max_drop is not None and not (number and 0 <= max_drop < 1):
        raise UsageError(f"max_drop={max_drop!r}: give the accuracy that may be lost as a share; 0.01 is one point")


@dataclass(frozen=True)
class _Goal:
    """The target, and the widths on the way to it."""

    axes: Sequence[Axis]
    ratio: float | Mapping[str, float] | None
    macs: float | None
    align: int
    floor: int

    def widths(self, traced: TracedGraph, way: float, scores: Scores | None) -> dict[str, int]:
        """`scores` are needed for a target in MACs; without them it is only checked whether it can be reached."""
        if self.ratio is not None:
            table = self.ratio if isinstance(self.ratio, Mapping) else {"*": self.ratio}
            choose.widths_by_ratio(self.axes, table, self.align, self.floor)  # names the given ratio where it is wrong
            table = {pattern: share * way for pattern, share in table.items()}
            return choose.widths_by_ratio(self.axes, table, self.align, self.floor)
        even = Scores({axis.id: np.ones(axis.size) for axis in self.axes}, "even")
        share = self.macs if way == 1 or self.macs is None or not 0 < self.macs <= 1 else 1 - way * (1 - self.macs)
        return choose.widths_by_macs(traced, self.axes, scores or even, share or 0.0, self.align, self.floor)


@dataclass
class _Work:
    """The network at full size, in which what was removed is zero, and what can be done with it.

    The traced graph shares its parameters; buffers are the graph's own and are written in both.
    """

    net: nn.Module
    traced: TracedGraph
    goal: _Goal
    scorer: Criterion
    task: Task
    data: Data
    training: Training
    target: Target | None
    kept: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def scores(self) -> Scores:
        """Scores of the network as it stands; what was removed comes before everything else."""
        found = score(self.traced, self.goal.axes, self.scorer, self.task, self.data.calibrating)
        if self.goal.macs is not None:
            found = normalised(found, "none" if self.scorer.comparable else "mean")
        found = Scores({axis: values.copy() for axis, values in found.by_axis.items()}, found.criterion)
        for axis, kept in self.kept.items():
            gone = np.setdiff1d(np.arange(len(found.by_axis[axis])), kept)
            found.by_axis[axis][gone] = -1e-9
        return found

    def plan(self, way: float, scores: Scores) -> Plan:
        """Never wider than what is left already."""
        widths = self.goal.widths(self.traced, way, scores)
        widths = {axis: min(w, len(self.kept[axis])) if axis in self.kept else w for axis, w in widths.items()}
        return choose.plan_of(self.traced, widths, choose.removal_order(scores))

    def tensors(self) -> list[dict[str, Tensor]]:
        return [graphs.tensors_of(self.net), graphs.tensors_of(self.traced.captured)]

    def take(self, pruned: Pruned) -> None:
        """The trained values into the network of full size, zero where a position was removed.

        A round that is taken back was never put in: it trained copies of what was kept.
        """
        found = graphs.tensors_of(pruned.model)
        with torch.no_grad():
            for tensors in self.tensors():
                for name, tensor in tensors.items():
                    if name in found and name in pruned.kept:
                        _put(tensor, found[name].detach(), pruned.kept[name])
        self.kept = dict(pruned.plan.kept)

    def accuracy(self, module: nn.Module) -> Measurement:
        device = device_of(module)

        def predict(inputs: Any) -> Any:
            moved = to_device(inputs, device)
            return to_device(module(*moved.args, **moved.kwargs), torch.device("cpu"))

        return evaluate(predict, self.data.validation, self.task)

    def costs(self, pruned: Pruned) -> dict[str, float]:
        """MACs, and what the target measures."""
        result = {"macs": float(pruned.macs)}
        if self.target is not None:
            found = measure(pruned, self.traced.example, self.target)
            result |= {_labelled(name, found[name]): float(found[name].value) for name in FIGURES if name in found}
        return result


def _labelled(name: str, figure: Measurement) -> str:
    return name if figure.status == "measured" else f"{name} (estimated)"


def _put(tensor: Tensor, values: Tensor, kept: Sequence[Any]) -> None:
    """Write `values` at the kept indices of `tensor` and zero elsewhere."""
    if all(k is None for k in kept):
        tensor.copy_(values)
        return
    chosen = [np.arange(n) if k is None else k for n, k in zip(tensor.shape, kept, strict=True)]
    index = tuple(torch.from_numpy(i).to(tensor.device) for i in np.ix_(*chosen))
    tensor.zero_()
    tensor[index] = values.to(tensor.device)


@dataclass
class _Loop:
    """Time runs from 0 to 1; a planned round is 1 / rounds of it, and adjusting makes a round longer or shorter."""

    work: _Work
    rounds: int
    steps: int
    schedule: Callable[[float], float]
    adjust: bool
    max_drop: float | None
    time: float = 0.0
    amount: float = 1.0
    history: list[Round] = field(default_factory=list)

    def run(self, on_round: Callable[[Round], None]) -> Gradual:
        work = self.work
        best = carry_out(work.net, work.traced, Plan({}, work.traced.fingerprint), None)
        start = work.accuracy(work.net)
        original, stopped = start.value, "rounds"
        costs = {"first": work.costs(best), "last": work.costs(best)}
        accuracy = original
        most = self.rounds * (MORE_ROUNDS if self.adjust else 1)
        for number in range(most):
            if self.max_drop is None:
                self.amount = max(self.amount, (1 - self.time) * self.rounds / (most - number))
            time, plan = self._next()
            pruned = carry_out(work.net, work.traced, plan, None)
            loss = self._tune(number, pruned)
            found, now = work.accuracy(pruned.model), work.costs(pruned)
            row = self._row(number, time, plan, original, accuracy, found.value, now, costs, found.runs, loss)
            self.history.append(row)
            on_round(row)
            if row.accepted:
                work.take(pruned)
                best, accuracy, self.time, costs["last"] = pruned, row.accuracy, time, now
            if row.accepted and time >= 1:
                stopped = "target"
                break
            self.amount = min(FASTEST, self.amount * row.factor)
            if not row.accepted and (not self.adjust or self.amount < SLOWEST):
                stopped = "drop limit"
                break
            self.amount = max(SLOWEST, self.amount)
        return Gradual(best, tuple(self.history), original, stopped)

    def _next(self) -> tuple[float, Plan]:
        """The time after this round and the plan; further on where so little time removes no position."""
        scores, time = self.work.scores(), self.time
        while True:
            time = min(1.0, time + self.amount / self.rounds)
            time = 1.0 if time > 1 - 1e-9 else time
            plan = self.work.plan(self.schedule(time), scores)
            if time == 1 or dict(plan.kept) != self.work.kept:
                return time, plan

    def _tune(self, number: int, pruned: Pruned) -> float:
        work = self.work
        how: Training = {**work.training, "seed": work.training.get("seed", 0) + number}
        return tune_(pruned.model, work.task, work.data.train, self.steps, how, f"round {number}").loss

    def _row(
        self,
        number: int,
        time: float,
        plan: Plan,
        original: float,
        before: float,
        accuracy: float,
        now: Mapping[str, float],
        costs: Mapping[str, Mapping[str, float]],
        samples: int,
        loss: float,
    ) -> Round:
        drop, lost = original - accuracy, before - accuracy
        accepted = self.max_drop is None or drop <= self.max_drop + 1e-12
        factor = 1.0
        if self.adjust and accepted:
            step, passed = time - self.time, self.time
            saved = {k: (costs["last"][k] - now[k]) / step for k in now}
            earlier = {k: (costs["first"][k] - costs["last"][k]) / passed for k in now} if passed else {}
            room = (DROP if self.max_drop is None else self.max_drop) - (original - before)
            share = step / (1 - self.time)
            factor = adjusting(lost, room, share, pace(saved, earlier), noise_of(accuracy, samples))
        elif self.adjust:
            factor = DOWN
        widths = {axis: len(kept) for axis, kept in plan.kept.items()}
        figures = {k: v for k, v in now.items() if k != "macs"}
        way, amount = self.schedule(time), (time - self.time) * self.rounds
        macs = int(now["macs"])
        return Round(number, way, amount, widths, accuracy, drop, lost, macs, loss, accepted, factor, figures)
