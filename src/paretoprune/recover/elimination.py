"""In which order positions go when every removal is repaired: the optimal brain surgeon, one block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretoprune.core.errors import PlanError
from paretoprune.recover.gram import Gram
from paretoprune.recover.least_squares import DAMPING, cholesky, moments

KEEP = 0.75
"""Where no more of the positions are left, what is gone is forgotten: each removal works on what is left."""


@dataclass(frozen=True)
class Order:
    """`positions` in order of removal; `error[i]` is the share of energy lost once positions[: i + 1] are gone.

    `error` rises and ends at the share that all positions carry (1 where the groups are all columns).
    """

    positions: NDArray[np.int64] = field(repr=False)
    error: NDArray[np.float64] = field(repr=False)


class Elimination:
    """A contraction under removal of groups of columns, with its weights and inverse moments kept up to date.

    Removing group g from weights W with inverse moments B costs tr(W_g B_gg⁻¹ W_gᵀ); then W -= W_g B_gg⁻¹ B_g and
    B -= B_·g B_gg⁻¹ B_g· (Frantar & Alistarh 2022, eq. 4 and lemma 1, for blocks). The sums of costs are exactly the
    errors of `reconstruct` on what is left. O(K³) for all.
    """

    def __init__(
        self, matrix: Tensor, gram: Gram, groups: Tensor, *, intercept: bool = True, damping: float = DAMPING
    ) -> None:
        """`matrix` (outputs, K); `groups` (positions, columns per position): disjoint columns."""
        if groups.ndim != 2 or len(torch.unique(groups)) != groups.numel() or int(groups.max()) >= matrix.shape[1]:
            raise PlanError(
                f"groups must be disjoint columns of {matrix.shape[1]}, shape (positions, columns per position)"
            )
        moment = moments(gram, intercept, damping)
        weight = matrix.detach().to(moment.device, torch.float64)
        self.size = len(groups)
        self.total = float(((weight @ moment) * weight).sum())
        inverse = torch.cholesky_inverse(cholesky(moment))
        self._places = torch.arange(self.size, device=moment.device)
        self._columns = torch.arange(matrix.shape[1], device=moment.device)
        self._alive = torch.ones(self.size, dtype=torch.bool, device=moment.device)
        self._weight, self._inverse, self._groups = weight, inverse, groups.to(moment.device)
        if groups.numel() < matrix.shape[1]:
            self._compact()

    def left(self) -> tuple[Tensor, Tensor]:
        """(columns of the matrix that belong to positions which are left, their weights (outputs, columns))."""
        columns = self._groups[self._alive].reshape(-1)
        return self._columns[columns], self._weight[:, columns]

    def costs(self) -> Tensor:
        """(positions,) share of energy that each removal would lose next; infinite for those that are gone."""
        mine = self._weight[:, self._groups].permute(1, 2, 0)
        solved = torch.cholesky_solve(mine, torch.linalg.cholesky(self._blocks()))
        lost = (mine * solved).sum(dim=(1, 2)).clamp_min(0)
        lost = lost / self.total if self.total > 0 else torch.zeros_like(lost)
        result = torch.full((self.size,), torch.inf, dtype=lost.dtype, device=lost.device)
        result[self._places] = lost.masked_fill(~self._alive, torch.inf)
        return result

    def remove(self, positions: Sequence[int]) -> list[float]:
        """Take `positions` out; the share of energy that each loses, in their order.

        With L Lᵀ = B_gg, Z = L⁻¹ W_gᵀ and V = L⁻¹ B_g the update is W -= Zᵀ V, B -= Vᵀ V, and since L's leading part
        belongs to the leading positions, the squares of Z are the costs one after the other.
        """
        here = torch.searchsorted(self._places, torch.tensor(list(positions), device=self._places.device))
        columns = self._groups[here].reshape(-1)
        rows = self._inverse[columns]
        factor = torch.linalg.cholesky(rows[:, columns])
        down = torch.linalg.solve_triangular(factor, self._weight[:, columns].T, upper=False)
        across = torch.linalg.solve_triangular(factor, rows, upper=False)
        self._weight.addmm_(down.T, across, alpha=-1)
        self._inverse.addmm_(across.T, across, alpha=-1)
        self._weight[:, columns] = 0
        self._inverse[columns] = 0
        self._inverse[:, columns] = 0
        self._alive[here] = False
        lost = down.square().sum(dim=1).reshape(len(positions), -1).sum(dim=1)
        if int(self._alive.sum()) <= KEEP * len(self._alive):
            self._compact()
        return [float(x) / self.total if self.total > 0 else 0.0 for x in lost]

    def _compact(self) -> None:
        """Forget what is gone, and columns of no position: nothing that is asked for depends on them any more."""
        groups = self._groups[self._alive]
        columns = groups.reshape(-1)
        self._weight = self._weight[:, columns]
        self._inverse = self._inverse[columns][:, columns]
        self._columns, self._places = self._columns[columns], self._places[self._alive]
        self._groups = torch.arange(columns.numel(), device=columns.device).reshape(groups.shape)
        self._alive = torch.ones(len(groups), dtype=torch.bool, device=columns.device)

    def _blocks(self) -> Tensor:
        """(positions, t, t) diagonal blocks of the inverse; the identity for positions that are gone."""
        blocks = self._inverse[self._groups[:, :, None], self._groups[:, None, :]]
        unit = torch.eye(self._groups.shape[1], dtype=blocks.dtype, device=blocks.device)
        return torch.where(self._alive[:, None, None], blocks, unit)


def order_by_error(
    matrix: Tensor,
    gram: Gram,
    groups: Tensor,
    *,
    intercept: bool = True,
    damping: float = DAMPING,
    at_once: int | None = None,
) -> Order:
    """Greedy order in which the positions of one contraction's input go. `groups`: (positions, columns of each)."""
    elimination = Elimination(matrix, gram, groups, intercept=intercept, damping=damping)
    return order_jointly([elimination], at_once=at_once)


def order_jointly(eliminations: Sequence[Elimination], *, at_once: int | None = None) -> Order:
    """Greedy order of positions that several contractions sum over; the error is the mean of theirs.

    The cheapest `at_once` positions go before costs are looked at again: by default one, or a 64th of many. The errors
    are exact either way.
    """
    sizes = {e.size for e in eliminations}
    if len(sizes) != 1:
        raise PlanError(f"contractions over one axis must agree on its size, got {sorted(sizes)}")
    size = sizes.pop()
    step = max(1, size // 64) if at_once is None else at_once
    positions: list[int] = []
    lost: list[float] = []
    while len(positions) < size:
        costs = torch.stack([e.costs().cpu() for e in eliminations]).mean(dim=0)
        cheapest = costs.argsort(stable=True)[: min(step, size - len(positions))].tolist()
        each = [e.remove(cheapest) for e in eliminations]
        positions += cheapest
        lost += [sum(shares) / len(each) for shares in zip(*each, strict=True)]
    error = np.minimum(np.cumsum(np.asarray(lost, dtype=np.float64)), 1.0)
    return Order(np.asarray(positions, dtype=np.int64), error)
