"""Least squares, carried into a pruned network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretoprune.core.errors import PlanError
from paretoprune.core.graph import Contraction, Program
from paretoprune.recover.gram import Gram
from paretoprune.recover.least_squares import DAMPING, Reconstruction, reconstruct

Kept = Mapping[str, Sequence[NDArray[np.int64] | None]]
"""By parameter or buffer name, one entry per dimension: the kept indices, or None for all."""


@dataclass(frozen=True)
class Reconstructed:
    """What became of a contraction that lost inputs.

    `error` is the share of energy lost; None where the contraction was left alone, and `left` says why.
    """

    node: str
    weight: str
    error: float | None
    left: str = ""


def reconstruct_program(
    original: Mapping[str, Tensor],
    program: Program,
    kept: Kept,
    grams: Mapping[str, Gram],
    *,
    damping: float = DAMPING,
) -> tuple[Reconstructed, ...]:
    """Give every contraction of the pruned `program` that lost inputs its least-squares weights, in place.

    `original` is the state of the network before pruning, `grams` (by contraction node) was taken on it. The constant
    that is left goes into the bias, or into the running mean of the batch norm behind. Left alone, and said: weights
    that several contractions share, and contractions without a Gram matrix. Call it once, on freshly cut weights.
    """
    uses = Counter(c.weight for c in program.contractions)
    state = program.module.state_dict(keep_vars=True)
    report = []
    for contraction in program.contractions:
        dims = kept.get(contraction.weight)
        inputs = None if dims is None else dims[contraction.input_dim]
        if dims is None or inputs is None or len(inputs) == original[contraction.weight].shape[contraction.input_dim]:
            continue
        left = ""
        if uses[contraction.weight] > 1:
            left = f"{uses[contraction.weight]} contractions share the weight"
        elif contraction.node not in grams:
            left = "no Gram matrix was taken"
        error = (
            None if left else _rewrite(contraction, original, state, kept, program, grams[contraction.node], damping)
        )
        report.append(Reconstructed(contraction.node, contraction.weight, error, left))
    return tuple(report)


def _rewrite(
    contraction: Contraction,
    original: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    kept: Kept,
    program: Program,
    gram: Gram,
    damping: float,
) -> float:
    old, target = original[contraction.weight], state[contraction.weight]
    dims = kept[contraction.weight]
    matrix = contraction.matrix(outputs_kept(old.detach(), dims, contraction.input_dim))
    columns = _columns(old, dims, contraction.input_dim, matrix.shape[1])
    constant = constant_of(contraction, program, len(matrix), state)
    solved = reconstruct(matrix, gram, columns, intercept=constant is not None, damping=damping)
    with torch.no_grad():
        target.copy_(contraction.unmatrix(solved.weight, target.shape))
        if constant is not None:
            shift_constant(constant, contraction.bias is not None, original, state, kept, solved)
    return solved.error


def constant_of(contraction: Contraction, program: Program, outputs: int, state: Mapping[str, Tensor]) -> str | None:
    """Name of the bias, or else of the running mean, that takes up a constant per output."""
    name = contraction.bias
    if name is None:
        name = next((b.mean for b in program.batch_norms if b.node == contraction.batch_norm), None)
    elif sum(c.bias == name for c in program.contractions) > 1:
        return None
    return name if name is not None and state[name].numel() == outputs else None


def shift_constant(
    name: str,
    is_bias: bool,
    original: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    kept: Kept,
    solved: Reconstruction,
) -> None:
    """Bias plus shift; a running mean, which is subtracted, minus shift."""
    if solved.shift is None:
        return
    values = outputs_kept(original[name].detach(), kept.get(name, ()), None).double().cpu()
    shift = solved.shift.reshape(values.shape).cpu()
    state[name].copy_(values + shift if is_bias else values - shift)


def outputs_kept(tensor: Tensor, dims: Sequence[NDArray[np.int64] | None], but: int | None) -> Tensor:
    """`tensor` cut to the kept indices along every dimension except `but`."""
    for dim, indices in enumerate(dims):
        if indices is not None and dim != but:
            tensor = tensor.index_select(dim, torch.from_numpy(np.asarray(indices, dtype=np.int64)).to(tensor.device))
    return tensor


def _columns(old: Tensor, dims: Sequence[NDArray[np.int64] | None], input_dim: int, columns: int) -> Tensor:
    """Columns of the flattened weight that belong to the kept inputs (inputs outer, taps inner)."""
    inputs, kept = old.shape[input_dim], dims[input_dim]
    if columns % inputs or kept is None:
        raise PlanError(f"a weight with {inputs} inputs has {columns} columns: not a whole number of taps")
    taps = columns // inputs
    first = torch.from_numpy(np.asarray(kept, dtype=np.int64)) * taps
    return (first[:, None] + torch.arange(taps)[None, :]).reshape(-1)
