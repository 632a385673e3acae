"""The best weights on fewer inputs.

A contraction y = W x (+ b) that keeps the columns S of its input gets W' with W' x_S ≈ W x: the optimal brain surgeon's
update (Hassibi & Stork 1993) for a set of columns, for channels as in He et al. 2017 ("Channel Pruning"), in the form
of Frantar & Alistarh 2022 ("Optimal Brain Compression"). With D = [W' on S, 0] - W and the damped moments A = C + λI it
minimises tr(D A Dᵀ):

    W' = W_S + W_R A_RS A_SS⁻¹,    R the columns that go.

So damping pulls towards the plain removal of columns, never towards zero, and W' is never worse than plain removal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from paretoprune.core.errors import PlanError, PruneError
from paretoprune.recover.gram import Gram

DAMPING = 1e-3
"""λ as a share of the mean diagonal of the moments."""
TRIES = 6


@dataclass(frozen=True)
class Reconstruction:
    """`weight` (outputs, kept columns); `shift` (outputs,) is to be added to the bias, None without an intercept.

    `error` is tr(D A Dᵀ) / tr(W A Wᵀ), in 0 to 1: the share of the output's energy that is lost.
    """

    weight: Tensor = field(repr=False)
    shift: Tensor | None = field(repr=False)
    error: float


def moments(gram: Gram, intercept: bool, damping: float) -> Tensor:
    """A = C + λI (K, K) in double precision; C is the covariance with an intercept, else the second moments."""
    moment = gram.centred() if intercept else gram.second.clone()
    level = max(float(moment.diagonal().mean()) * damping, torch.finfo(torch.float64).tiny)
    moment.diagonal().add_(level)
    return moment


def reconstruct(
    matrix: Tensor, gram: Gram, kept: Tensor, *, intercept: bool = True, damping: float = DAMPING
) -> Reconstruction:
    """The least-squares weights of `matrix` (outputs, K) on the columns `kept` (any order, at least one).

    `intercept`: the contraction has a bias, or something behind it takes up a constant. Raises PlanError for columns
    that are not there, PruneError where no damping makes the moments positive definite.
    """
    _check(matrix, gram, kept)
    weight = matrix.detach().to(gram.second.device, torch.float64)
    kept = kept.to(weight.device)
    gone = _others(weight.shape[1], kept)
    moment = moments(gram, intercept, damping)
    new = weight[:, kept]
    if len(gone):
        factor = cholesky(moment[kept][:, kept])
        new = new + torch.cholesky_solve(moment[kept][:, gone] @ weight[:, gone].T, factor).T
    change = -weight
    change[:, kept] += new
    shift = -change @ gram.mean if intercept else None
    return Reconstruction(new.to(matrix.dtype), shift, _share(_energy(change, moment), _energy(weight, moment)))


def reconstruction_error(
    matrix: Tensor, gram: Gram, kept: Tensor, *, intercept: bool = True, damping: float = DAMPING
) -> float:
    """Share of the output's energy that is lost, in 0 to 1, when `reconstruct` keeps the columns `kept`."""
    return reconstruct(matrix, gram, kept, intercept=intercept, damping=damping).error


def cholesky(moment: Tensor) -> Tensor:
    """Lower factor of a positive semi-definite matrix, with more damping each time that it fails."""
    level = max(float(moment.diagonal().mean()) * 1e-6, 1e-16)  # inputs that never vary have moments of zero
    damped = moment
    for _ in range(TRIES):
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            return factor
        damped = moment.clone()
        damped.diagonal().add_(level)
        level *= 10
    raise PruneError(
        "least squares: the moments of the inputs are not positive definite; raise damping or give more samples"
    )


def _energy(weight: Tensor, moment: Tensor) -> float:
    return float(((weight @ moment) * weight).sum())


def _share(lost: float, total: float) -> float:
    return min(1.0, max(0.0, lost / total)) if total > 0 else 0.0


def _others(columns: int, kept: Tensor) -> Tensor:
    mask = torch.ones(columns, dtype=torch.bool, device=kept.device)
    mask[kept] = False
    return mask.nonzero().flatten()


def _check(matrix: Tensor, gram: Gram, kept: Tensor) -> None:
    columns = matrix.shape[1]
    if tuple(gram.second.shape) != (columns, columns):
        raise PlanError(f"the weight has {columns} columns, its Gram matrix {gram.second.shape[0]}")
    if kept.ndim != 1 or len(kept) == 0 or int(kept.min()) < 0 or int(kept.max()) >= columns:
        raise PlanError(f"kept columns must be a non-empty list of 0 to {columns - 1}, got {kept.tolist()[:8]} …")
    if len(torch.unique(kept)) != len(kept):
        raise PlanError("kept columns repeat")
