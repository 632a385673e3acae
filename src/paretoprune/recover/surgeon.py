"""One-shot removal of single weights with a least-squares update of what stays.

SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774, algorithm 1), which is Optimal Brain Surgeon column by column: all
rows share the inverse Hessian of what stands to the right, so a column that is done takes no more part in updates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from paretoprune.core.errors import PlanError
from paretoprune.recover.least_squares import cholesky

Choose = Callable[[int, Tensor], Tensor]
"""From the first column of a group and its scores (outputs, columns) to what stays of it, True or False."""
COLUMNS = 128
"""Columns whose zeros are chosen at once, as in the paper."""


def inverse_factor(moment: Tensor) -> Tensor:
    """U (K, K), upper, with Uᵀ U = A⁻¹ of the damped moments A: row j of U / U_jj² is column j's of the inverse that is
    left when the columns before it are done."""
    upper: Tensor = cholesky(torch.cholesky_inverse(cholesky(moment))).T
    return upper


def damages(matrix: Tensor, moment: Tensor) -> Tensor:
    """(outputs, K): w² / (2 [A⁻¹]_jj), what the output's energy loses by the removal of each weight alone, when all
    others may follow (Hassibi & Stork 1993, eq. 5)."""
    inverse = torch.cholesky_inverse(cholesky(moment))
    return matrix.double().square() / (2 * inverse.diagonal())


def pruned_by_surgeon(matrix: Tensor, moment: Tensor, choose: Choose, *, step: int = 1) -> Tensor:
    """(outputs, K) in double precision, zero where `choose` let weights go.

    `moment` (K, K): damped moments of the inputs (`least_squares.moments`). `step`: groups begin at its multiples.
    Raises PlanError for moments of another size, PruneError where they are not positive definite.
    """
    weight = matrix.detach().double().cpu().clone()
    if tuple(moment.shape) != (weight.shape[1],) * 2:
        raise PlanError(f"the weight has {weight.shape[1]} columns, its moments {tuple(moment.shape)}")
    factor = inverse_factor(moment)
    width = max(1, COLUMNS // step) * step
    for start in range(0, weight.shape[1], width):
        stop = min(weight.shape[1], start + width)
        part = weight[:, start:stop]
        inner = factor[start:stop, start:stop]
        stays = choose(start, part.square() / inner.diagonal().square())
        errors = torch.zeros_like(part)
        for j in range(stop - start):
            errors[:, j] = torch.where(stays[:, j], 0.0, part[:, j] / inner[j, j])
            part[:, j:] -= torch.outer(errors[:, j], inner[j, j:])
            part[:, j].masked_fill_(~stays[:, j], 0.0)
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return weight
