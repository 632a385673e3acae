"""Growing regularisation: the positions that will go are pressed harder and harder, the others not at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paretoprune.recover.sparse.groups import Groups
from paretoprune.recover.sparse.method import check_strength, lowest


class GrowingRegularisation:
    """GReg-1 (Wang et al. 2021, "Neural Pruning via Growing Regularization", arXiv:2012.09243, algorithm 1).

    The positions of the lowest norm are chosen before the first step. Their L2 penalty grows linearly with the steps,
    which lets the network move what they do to others. As decoupled decay, w ← exp(−λ) · w after the step (Loshchilov &
    Hutter 2019), so that neither the learning rate nor an adaptive optimizer changes it.

    `strength`: the sum of λ over all steps; 10 leaves e⁻¹⁰ of a weight that the loss does not defend.
    """

    def __init__(self, groups: Groups, counts: Mapping[str, int], strength: float = 10.0) -> None:
        self.groups, self.strength = groups, check_strength(strength)
        self.chosen = {axis: lowest(groups.norms(axis), count) for axis, count in counts.items() if count}

    def penalty(self, step: int, steps: int) -> Tensor | None:
        return None

    def after_step(self, step: int, steps: int) -> None:
        decay = self.strength * 2 * (step + 1) / (steps * (steps + 1))
        for axis, positions in self.chosen.items():
            factors = torch.ones(self.groups.sizes[axis], dtype=torch.float64)
            factors[positions] = math.exp(-decay)
            self.groups.scale_(axis, factors)

    def scores(self) -> Mapping[str, Tensor]:
        """Norms; those of the chosen positions below all others, even where the loss defended them."""
        scores = {axis: self.groups.norms(axis) for axis in self.groups.axes}
        for axis, positions in self.chosen.items():
            others = [p for p in range(self.groups.sizes[axis]) if p not in set(positions)]
            above = float(scores[axis][positions].max()) - float(scores[axis][others].min())
            scores[axis][others] += max(0.0, above)
        return scores

    def settle(self, removed: Mapping[str, Sequence[int]]) -> None:
        """Nothing is left to do."""

    def state_dict(self) -> dict[str, Any]:
        return {axis: torch.tensor(positions, dtype=torch.int64) for axis, positions in self.chosen.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.chosen = {axis: positions.tolist() for axis, positions in state.items()}
