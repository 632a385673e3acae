"""What enters a contraction in two networks at once, as moments, and the weights that make up for the difference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paretoprune.core.errors import DataError
from paretoprune.core.graph import Contraction
from paretoprune.recover.gram import FEWEST
from paretoprune.recover.inputs import chosen
from paretoprune.recover.least_squares import Reconstruction, cholesky

ROUNDING = 1e-9
"""Share of the second moments below which a variance is rounding: a single row has none, and must pull nothing."""


class CrossMoments:
    """Sums over the outputs t = W x of a contraction in one network and the rows y (K',) that enter it in another.

    Double precision. Where there would be more than `rows_cap` rows, fewer samples of each piece are looked at (a
    seeded choice, the same in both networks), then fewer of their rows.
    """

    def __init__(self, contraction: Contraction, matrix: Tensor, columns: int, rows_cap: int) -> None:
        self.contraction, self.matrix, self.rows_cap = contraction, matrix.detach(), rows_cap
        outputs = len(matrix)
        self.rows = 0
        self.cross = torch.zeros(outputs, columns, dtype=torch.float64)
        self.second = torch.zeros(columns, columns, dtype=torch.float64)
        self.energy = torch.zeros(outputs, dtype=torch.float64)
        self.wanted = torch.zeros(outputs, dtype=torch.float64)
        self.total = torch.zeros(columns, dtype=torch.float64)
        self.rows_each = 0.0
        self.generator = torch.Generator().manual_seed(0)

    def add(self, x: Tensor, y: Tensor, samples: int, of: int) -> None:
        """`x` and `y` enter; they are of `samples` of `of` samples in all."""
        limit = max(1, math.ceil(self.rows_cap * samples / of))
        if x.shape[0] == y.shape[0] == samples:
            if not self.rows_each:
                self.rows_each = float(len(self.contraction.rows(x[:2]))) / min(2, samples)
            if self.rows_each * samples > limit:
                fewer = min(samples, max(FEWEST, math.ceil(limit / self.rows_each)))
                x, y = chosen(fewer, self.generator, x, y)
        before, after = self.contraction.rows(x), self.contraction.rows(y)
        if len(before) > limit:
            before, after = chosen(limit, self.generator, before, after)
        outputs = (before @ self.matrix.to(before).T).to(_summed(before))
        after = after.to(_summed(after))
        self._count(outputs, after)

    def _count(self, outputs: Tensor, after: Tensor) -> None:
        """Products of centred rows, the means added in double: else rounding would look like variance."""
        wanted, mean = outputs.mean(dim=0), after.mean(dim=0)
        outputs, after = outputs - wanted, after - mean
        wanted, mean, rows = wanted.double().cpu(), mean.double().cpu(), len(after)
        self.cross += (outputs.T @ after).double().cpu() + rows * torch.outer(wanted, mean)
        self.second += (after.T @ after).double().cpu() + rows * torch.outer(mean, mean)
        self.energy += outputs.square().sum(dim=0).double().cpu() + rows * wanted.square()
        self.wanted += rows * wanted
        self.total += rows * mean
        self.rows += rows


def _summed(rows: Tensor) -> torch.dtype:
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def refit(start: Tensor, sums: CrossMoments, *, intercept: bool, damping: float) -> Reconstruction:
    """Weights (outputs, K') with which the new rows give what the old ones gave.

    Damping pulls towards `start` (outputs, K'). `error` is the share of the output's energy that is not met. Raises
    DataError for moments that are not finite.
    """
    if not bool(torch.isfinite(sums.second).all() & torch.isfinite(sums.cross).all()):
        raise DataError(
            f"what enters {sums.contraction.node!r} is not finite on the calibration batches: check inputs and weights"
        )
    size = float(sums.second.diagonal().mean()) / sums.rows
    wanted, mean = sums.wanted / sums.rows, sums.total / sums.rows
    cross, second, energy = sums.cross / sums.rows, sums.second / sums.rows, sums.energy / sums.rows
    if intercept:
        cross = cross - torch.outer(wanted, mean)
        second = second - torch.outer(mean, mean)
        energy = energy - wanted.square()
    damped = second.clone()
    level = max(float(second.diagonal().mean()) * damping, size * ROUNDING, torch.finfo(torch.float64).tiny)
    damped.diagonal().add_(level)
    new = torch.cholesky_solve((cross + level * start.detach().cpu().double()).T, cholesky(damped)).T
    total = float(energy.sum())
    lost = total - 2 * float((new * cross).sum()) + float(((new @ second) * new).sum())
    shift = wanted - new @ mean if intercept else None
    return Reconstruction(new.to(start.dtype), shift, min(1.0, max(0.0, lost / total)) if total > 0 else 0.0)
