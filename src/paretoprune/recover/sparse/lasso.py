"""Group lasso on the positions of axes, as a proximal step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paretoprune.recover.sparse.groups import Groups
from paretoprune.recover.sparse.method import check_strength

TINY = 1e-100
LEAST = 0.5
"""Of a position that `counts` keeps, so much is left by one step, however long: few steps must not take everything."""


class GroupLasso:
    """Shrinks every position's makers by a length per step: w ← max(0, 1 − τ / ‖w‖₂) · w.

    That is the proximal operator of τ Σ ‖w‖₂ (Yuan & Lin 2006 for the penalty; Parikh & Boyd 2014, "Proximal
    Algorithms", § 6.5.4; Wen et al. 2016, "Learning Structured Sparsity", for networks). Proximal and not a penalty,
    because a gradient step never reaches zero, and because an adaptive optimizer divides a penalty's gradient by the
    size of the weights' own (Loshchilov & Hutter 2019 show it for weight decay; Deleu & Bengio 2021, arXiv:2102.03869,
    for groups). What makes a position and what scales it are one group: behind a batch norm the length of a filter
    alone means nothing.

    `strength` is free of scale: τ = strength × the axis's mean norm at the start / steps × (mean norm / ‖w‖)². The last
    factor weighs the groups anew at every step by what they are (Wang & Leng 2008, "A note on adaptive group lasso";
    Candès, Wakin & Boyd 2008): with equal lengths all filters of a trained layer, whose norms hardly differ, shrink
    together (on digits, 60 % to go, 200 steps: 94.2 % with equal lengths, 98.0 % so). A position of the mean norm that
    the loss does not defend is zero after 1 / strength of the steps. With `counts` an axis rests while that many
    of its positions are zero, so that a large strength does not wear down those that stay.
    """

    def __init__(self, groups: Groups, strength: float = 1.0, counts: Mapping[str, int] | None = None) -> None:
        self.groups, self.strength, self.counts = groups, check_strength(strength), dict(counts or {})
        self.start = {axis: float(groups.norms(axis).mean()) for axis in groups.axes}

    def penalty(self, step: int, steps: int) -> Tensor | None:
        return None

    def after_step(self, step: int, steps: int) -> None:
        for axis, start in self.start.items():
            norms = self.groups.norms(axis)
            if axis in self.counts and int((norms == 0).sum()) >= self.counts[axis]:
                continue
            relative = norms.clamp_min(TINY) / norms.mean().clamp_min(TINY)
            length = self.strength * start / steps / relative**2
            left = (1 - length / norms.clamp_min(TINY)).clamp_min(0)
            if axis in self.counts:
                stay = torch.argsort(norms, stable=True)[self.counts[axis] :]
                left[stay] = left[stay].clamp_min(LEAST)
            self.groups.scale_(axis, left)

    def scores(self) -> Mapping[str, Tensor]:
        return {axis: self.groups.norms(axis) for axis in self.groups.axes}

    def settle(self, removed: Mapping[str, Sequence[int]]) -> None:
        """Nothing is left to do."""

    def state_dict(self) -> dict[str, Any]:
        return dict(self.start)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.start = {axis: float(state[axis]) for axis in self.groups.axes}
