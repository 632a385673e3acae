"""The best matrix of a lower rank, in the metric of what really enters a layer.

A contraction y = W x (+ b) gets W' = U_r U_rᵀ W, where U_r holds the r leading left singular vectors of W L and
L Lᵀ = A, the moments of the inputs: by Eckart & Young (1936) no other matrix of rank r makes tr((W - W') A (W - W')ᵀ)
smaller, and it is σ²_{r+1} + σ²_{r+2} + … (Zhang et al. 2016, "Accelerating very deep convolutional networks for
classification and detection", arXiv:1505.06798, eq. 4 to 6: the principal components of the responses). W' is a
projection in the space of outputs: nothing is divided by A, which may be singular. A constant takes up the mean: with
one, A is the covariance. Without data A is the identity, which is the plain singular value decomposition.

In space, W (o, i, y, x) is to become the sum over r of H (o, r, x) V (r, i, y) (Jaderberg et al. 2014, "Speeding up
convolutional neural networks with low rank expansions", arXiv:1405.3866, eq. 6). Without data the decomposition of the
matrix (o·x, i·y) is the best; with data none is known in closed form, so the two are solved for in turns, each the best
for the other one: the error never rises, and it starts from the plain decomposition.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretoprune.core.errors import PlanError
from paretoprune.core.graph import Contraction, Program
from paretoprune.recover.apply import constant_of
from paretoprune.recover.gram import Gram
from paretoprune.recover.least_squares import cholesky

DAMPING = 1e-6
"""λ of A = C + λI as a share of the inputs' mean square: what never varied in the calibration data counts a little."""
TURNS = 6
STEPS = 12
"""Of conjugate gradients in each turn."""


@dataclass(frozen=True)
class Factors:
    """`first` (rank, K) and `second` (outputs, rank); `shift` (outputs,) is to be added to the bias, None without one.

    `error` is the share of the output's energy that is lost, in 0 to 1, in the metric that was used.
    """

    first: Tensor = field(repr=False)
    second: Tensor = field(repr=False)
    shift: Tensor | None = field(repr=False)
    error: float


def factorise(
    matrix: Tensor, rank: int, gram: Gram | None = None, *, intercept: bool = True, damping: float = DAMPING
) -> Factors:
    """The factors of the best matrix of rank at most `rank` in place of `matrix` (outputs, K).

    Both are of equal length, component by component, so that neither trains faster. Raises PlanError for a rank that is
    not within 1 to min(outputs, K).
    """
    if not 1 <= rank <= min(matrix.shape):
        raise PlanError(f"rank {rank} is not within 1 to {min(matrix.shape)} of a matrix {tuple(matrix.shape)}")
    weight, vectors, values = _decomposed(matrix, gram, intercept, damping)
    second = vectors[:, :rank]
    first = second.T @ weight
    shift = (weight - second @ first) @ gram.mean if gram is not None and intercept else None
    length = first.norm(dim=1).sqrt()
    length = torch.where(length > 0, length, torch.ones_like(length))
    return Factors(
        (first / length[:, None]).to(matrix.device, matrix.dtype),
        (second * length).to(matrix.device, matrix.dtype),
        shift,
        float(_tails(values)[rank]),
    )


def factorise_space(
    weight: Tensor,
    rank: int,
    gram: Gram | None = None,
    *,
    intercept: bool = True,
    damping: float = DAMPING,
    turns: int = TURNS,
) -> Factors:
    """The same for a convolution's `weight` (o, i, y, x): `first` (rank, i·y) and `second` (o, rank·x).

    `turns`: how often V is solved for anew; H always is. Raises PlanError for a rank not within 1 to min(i·y, o·x).
    """
    o, i, y, x = weight.shape
    plain = factorise(weight.permute(0, 3, 1, 2).reshape(o * x, i * y), rank)
    first, across = plain.first.double(), plain.second.double().reshape(o, x, rank).transpose(1, 2)
    shift, error, like = None, plain.error, weight
    if gram is not None:
        found = _Turns(weight, gram, intercept, damping)
        first, across = found.solved(first, turns)
        shift = (found.weight - _space(first, across)) @ gram.mean if intercept else None
        error = found.error(first, across)
    length = (first.norm(dim=1) / across.norm(dim=(0, 2)).clamp_min(1e-300)).sqrt().clamp(1e-6, 1e6)
    second = (across * length[:, None]).reshape(o, rank * x)
    return Factors((first / length[:, None]).to(like), second.to(like), shift, error)


def _space(first: Tensor, across: Tensor) -> Tensor:
    """(o, i·y·x) of V (r, i·y) and H (o, r, x)."""
    return torch.einsum("ra,orx->oax", first, across).flatten(1)


class _Turns:
    """V and H in turns, for tr(D A Dᵀ) with D what they leave of the weight."""

    def __init__(self, weight: Tensor, gram: Gram, intercept: bool, damping: float) -> None:
        self.weight = weight.detach().to(gram.second.device, torch.float64).flatten(1)
        self.x = weight.shape[-1]
        self.moment = damped(gram, intercept, damping)
        self.response = self.weight @ self.moment
        self.total = float((self.response * self.weight).sum())

    def solved(self, first: Tensor, turns: int) -> tuple[Tensor, Tensor]:
        """From this V; stops where a turn gains nothing."""
        across = self.across(first)
        best = self.error(first, across)
        for _ in range(turns):
            along = self.along(first, across)
            then = self.across(along)
            now = self.error(along, then)
            if now >= best:
                break
            gained, first, across, best = best - now, along, then, now
            if gained < 1e-3 * best:
                break
        return first, across

    def across(self, first: Tensor) -> Tensor:
        """The best H for V: least squares on what the first layer gives at the taps of the second."""
        rank, columns = first.shape
        four = self.moment.reshape(columns, self.x, columns, self.x)
        inner = torch.einsum("ra,axbz,sb->rxsz", first, four, first).reshape(rank * self.x, -1)
        right = torch.einsum("oax,ra->orx", self.response.reshape(-1, columns, self.x), first).flatten(1)
        return torch.cholesky_solve(right.T, cholesky(inner)).T.reshape(-1, rank, self.x)

    def along(self, first: Tensor, across: Tensor) -> Tensor:
        """A better V for H, by conjugate gradients (Hestenes & Stiefel 1952) from the one there is."""

        def gradient(of: Tensor) -> Tensor:
            return torch.einsum("oax,orx->ra", of.reshape(len(of), -1, self.x), across)

        residual = gradient(self.response - _space(first, across) @ self.moment)
        way, left = residual, residual.square().sum()
        for _ in range(STEPS):
            ahead = gradient(_space(way, across) @ self.moment)
            bend = (way * ahead).sum()
            if bend <= 0:
                break
            step = left / bend
            first, residual = first + step * way, residual - step * ahead
            way, left = residual + way * (residual.square().sum() / left), residual.square().sum()
        return first

    def error(self, first: Tensor, across: Tensor) -> float:
        rest = self.weight - _space(first, across)
        lost = float(((rest @ self.moment) * rest).sum())
        return min(1.0, max(0.0, lost / self.total)) if self.total > 0 else 0.0


def rank_errors(
    matrix: Tensor, gram: Gram | None = None, *, intercept: bool = True, damping: float = DAMPING
) -> NDArray[np.float64]:
    """(min(outputs, K) + 1,) share of energy that is lost at rank 0, 1, …: falls from 1 to 0."""
    result: NDArray[np.float64] = _tails(_decomposed(matrix, gram, intercept, damping)[2]).numpy()
    return result


def factorise_program(
    program: Program,
    ranks: Mapping[str, int],
    grams: Mapping[str, Gram],
    *,
    spatial: Collection[str] = (),
    damping: float = DAMPING,
) -> dict[str, Factors]:
    """Factors by weight name. `grams` by contraction node; a contraction without one gets the plain decomposition.
    `spatial`: weights that are divided in space.

    The constant that is left goes into the bias, or into the running mean of the batch norm behind, in place; the
    weights stay for the caller to replace.
    """
    state = program.module.state_dict(keep_vars=True)
    found = {}
    for contraction in program.contractions:
        if contraction.weight in ranks:
            weight, gram = state[contraction.weight].detach(), grams.get(contraction.node)
            constant = constant_of(contraction, program, len(weight), state)
            given, how = (
                (weight, factorise_space)
                if contraction.weight in spatial
                else (
                    contraction.matrix(weight),
                    factorise,
                )
            )
            made = how(given, ranks[contraction.weight], gram, intercept=constant is not None, damping=damping)
            if constant is not None and made.shift is not None:
                _add(state[constant], made.shift if contraction.bias is not None else -made.shift)
            found[contraction.weight] = made
    return found


def program_errors(
    program: Program, contraction: Contraction, gram: Gram | None, ranks: Sequence[int], spatial: bool = False
) -> list[float]:
    """Share of energy that a contraction of the program loses at each rank, never more at a higher one."""
    weight, intercept = _weight(program, contraction)
    matrix = contraction.matrix(weight)
    if not spatial:
        errors = rank_errors(matrix, gram, intercept=intercept)
        return [float(errors[r]) for r in ranks]
    found = [factorise_space(weight, r, gram, intercept=intercept, turns=0).error for r in ranks]
    return [float(e) for e in np.minimum.accumulate(found)]


def _weight(program: Program, contraction: Contraction) -> tuple[Tensor, bool]:
    """The weight of a contraction, and whether something takes up a constant."""
    state = program.module.state_dict(keep_vars=True)
    weight = state[contraction.weight].detach()
    return weight, constant_of(contraction, program, len(weight), state) is not None


def damped(gram: Gram, intercept: bool, damping: float = DAMPING) -> Tensor:
    """A (K, K), positive definite: what rounding left below zero, say of inputs that never vary, is taken out."""
    moment = gram.centred() if intercept else gram.second.clone()
    level = max(float(gram.second.diagonal().mean()) * damping, torch.finfo(torch.float64).tiny)
    moment.diagonal().add_(level)
    if int(torch.linalg.cholesky_ex(moment).info):
        values, vectors = torch.linalg.eigh(moment)
        moment = vectors * values.clamp_min(level) @ vectors.T
    return moment


def _decomposed(matrix: Tensor, gram: Gram | None, intercept: bool, damping: float) -> tuple[Tensor, Tensor, Tensor]:
    """(W in double precision, left singular vectors of W L, singular values), on the moments' device."""
    if gram is not None and tuple(gram.second.shape) != (matrix.shape[1], matrix.shape[1]):
        raise PlanError(f"the weight has {matrix.shape[1]} columns, its Gram matrix {gram.second.shape[0]}")
    weight = matrix.detach().to("cpu" if gram is None else gram.second.device, torch.float64)
    measured = weight if gram is None else weight @ cholesky(damped(gram, intercept, damping))
    vectors, values, _ = torch.linalg.svd(measured, full_matrices=False)
    return weight, vectors, values


def _tails(values: Tensor) -> Tensor:
    """Share of the squares that follow, before each value and after the last."""
    energy = values.square()
    tails = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    return tails / tails[0] if tails[0] > 0 else torch.zeros_like(tails)


def _add(tensor: Tensor, shift: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(tensor.double().cpu() + shift.reshape(tensor.shape).cpu())
