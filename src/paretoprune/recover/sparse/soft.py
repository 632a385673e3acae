"""Soft pruning: zeroed positions go on training and may come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paretoprune.core.errors import UsageError
from paretoprune.recover.sparse.groups import Groups
from paretoprune.recover.sparse.method import lowest
from paretoprune.recover.sparse.schedule import Schedule, schedule_of


class SoftPruning:
    """SFP (He et al. 2018, "Soft Filter Pruning", arXiv:1808.06866, algorithm 1), for every kind of axis.

    `cycles` times the positions of the lowest norm are set to zero; in between they train like all others, and those
    that grow past others come back. With the default schedule the share grows, as in He et al. 2019 ("Asymptotic Soft
    Filter Pruning", arXiv:1808.07471, with Zhu & Gupta's cubic in place of their exponential); "constant" is He 2018.

    What is zeroed is what reads the position, where the paper zeroes the filter: then the network computes exactly what
    it will without the position (a zeroed filter still sends its bias or batch-norm shift on), and the position comes
    back, for a reader's gradient does not vanish with itself as that behind a ReLU at 0 does. The norm that ranks is
    that of makers times readers, which a change of scale between two layers leaves as it is.
    """

    def __init__(
        self, groups: Groups, counts: Mapping[str, int], cycles: int = 10, schedule: str | Schedule = "cubic"
    ) -> None:
        if isinstance(cycles, bool) or not isinstance(cycles, int) or cycles < 1:
            raise UsageError(f"cycles={cycles!r}: give a whole number of at least 1")
        self.groups, self.counts, self.cycles = groups, dict(counts), cycles
        self.schedule = schedule_of(schedule)
        self.zeroed: dict[str, list[int]] = {}

    def penalty(self, step: int, steps: int) -> Tensor | None:
        return None

    def after_step(self, step: int, steps: int) -> None:
        cycles = min(self.cycles, steps)
        now = (step + 1) * cycles // steps
        if now == step * cycles // steps:
            return
        share, scores = self.schedule(now / cycles), self.scores()
        for axis, count in self.counts.items():
            self.zeroed[axis] = lowest(scores[axis], round(share * count))
            self.groups.zero_(axis, self.zeroed[axis], "readers")

    def scores(self) -> Mapping[str, Tensor]:
        return {a: self.groups.norms(a, "makers") * self.groups.norms(a, "readers") for a in self.groups.axes}

    def settle(self, removed: Mapping[str, Sequence[int]]) -> None:
        """Nothing is left to do."""

    def state_dict(self) -> dict[str, Any]:
        return {axis: torch.tensor(positions, dtype=torch.int64) for axis, positions in self.zeroed.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.zeroed = {axis: positions.tolist() for axis, positions in state.items()}
