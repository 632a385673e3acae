"""Where zeros may stand: values that turn scores into a mask.

A weight is seen as a matrix (outputs, inputs). A convolution's inputs are numbered kernel line, kernel column, channel,
so that neighbouring inputs are channels of one tap. A mask is a boolean matrix, True where the weight stays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretoprune.core.errors import ModelError, UsageError

Matrix = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Block:
    """Blocks of `rows` outputs by `columns` inputs, kept or removed together. Those at the edges may be smaller."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise UsageError(f"a block of {self.rows}x{self.columns}: both must be at least 1")

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"

    def units(self, scores: Matrix) -> Matrix:
        """(row blocks, column blocks): the mean score of each block's own elements."""
        return _sums(np.asarray(scores, np.float64), self.rows, self.columns) / self.sizes(scores.shape)

    def sizes(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """(row blocks, column blocks): elements of each block."""
        return np.outer(_spans(shape[0], self.rows), _spans(shape[1], self.columns))

    def spread(self, kept: Mask, shape: tuple[int, ...]) -> Mask:
        """A mask of the weight from one of its blocks."""
        return kept.repeat(self.rows, axis=0).repeat(self.columns, axis=1)[: shape[0], : shape[1]]


@dataclass(frozen=True)
class Unstructured(Block):
    """Every weight by itself."""

    rows: int = 1
    columns: int = 1

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class NofM:
    """At most `n` of each `m` neighbouring inputs stay. What is left over at the end of a row counts as `m` too."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise UsageError(f"{self.n}:{self.m}: of m neighbours 1 to m - 1 may stay")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        return 1 - self.n / self.m

    def mask(self, scores: Matrix) -> Mask:
        outputs, inputs = scores.shape
        padded = np.full((outputs, math.ceil(inputs / self.m) * self.m), -np.inf)
        padded[:, :inputs] = scores
        groups = padded.reshape(outputs, -1, self.m)
        order = np.argsort(-groups, axis=2, kind="stable")
        mask = np.zeros(groups.shape, dtype=np.bool_)
        np.put_along_axis(mask, order[:, :, : self.n], True, axis=2)
        return mask.reshape(outputs, -1)[:, :inputs]


Pattern = Block | NofM


def pattern_of(given: str | Pattern) -> Pattern:
    """From "unstructured", "2:4", "16x1" or any other "n:m" and "RxC"."""
    if isinstance(given, Block | NofM):
        return given
    if given == "unstructured":
        return Unstructured()
    for shape, kind in ((r"(\d+):(\d+)", NofM), (r"(\d+)x(\d+)", Block)):
        if found := re.fullmatch(shape, given):
            return kind(int(found[1]), int(found[2]))
    raise UsageError(f'pattern {given!r}: expected "unstructured", n:m such as "2:4", or RxC such as "16x1"')


def matrix_of(weight: NDArray[Any]) -> NDArray[Any]:
    """(outputs, inputs) of a linear (N, K) or convolution (O, I, kernel…) weight."""
    if weight.ndim < 2:
        raise UsageError(f"a weight of shape {weight.shape}: expected (outputs, inputs or channels, kernel…)")
    return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)


def weight_of(matrix: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The inverse of `matrix_of`."""
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(shape[0], *shape[2:], shape[1]), -1, 1))


def mask_of(pattern: Pattern, scores: Matrix, sparsity: float | None = None) -> Mask:
    """The mask of one layer; `scores` (outputs, inputs), the lowest go. Of equal scores the earlier ones go."""
    if isinstance(pattern, NofM):
        _no_other(pattern, sparsity)
        return pattern.mask(_sound(scores))
    return masks_of({"": pattern}, {"": scores}, sparsity)[""]


def masks_of(patterns: Mapping[str, Pattern], scores: Mapping[str, Matrix], sparsity: float | None) -> dict[str, Mask]:
    """Masks under one budget: of all weights together the share `sparsity` goes, where the scores are lowest.

    Blocks compete by their mean score, so scores must be comparable between the layers. N:M patterns have their own
    sparsity and cannot take part. The budget is not exceeded, and missed by less than a block.
    """
    share = _share(sparsity)
    blocks = {name: _block(name, patterns[name]) for name in scores}
    units = {name: blocks[name].units(_sound(each)) for name, each in scores.items()}
    sizes = {name: blocks[name].sizes(each.shape) for name, each in scores.items()}
    if not units:
        return {}
    flat, size = (np.concatenate([each[name].ravel() for name in units]) for each in (units, sizes))
    order = np.argsort(flat, kind="stable")
    removed = np.cumsum(size[order])
    kept = np.ones(len(flat), dtype=np.bool_)
    kept[order[: np.searchsorted(removed, share * removed[-1] + 1e-9, side="right")]] = False
    parts = np.split(kept, np.cumsum([each.size for each in units.values()])[:-1])
    return {
        name: blocks[name].spread(part.reshape(units[name].shape), scores[name].shape)
        for name, part in zip(units, parts, strict=True)
    }


def mask_above(pattern: Pattern, weight: Matrix, threshold: float) -> Mask:
    """What is larger than `threshold` stays: an absolute value, or a block's mean of them. N:M holds besides."""
    if not (math.isfinite(threshold) and threshold >= 0):
        raise UsageError(f"threshold={threshold}: it must be a number, zero or above")
    magnitude = np.abs(_sound(weight))
    if isinstance(pattern, NofM):
        return pattern.mask(magnitude) & (magnitude > threshold)
    return pattern.spread(pattern.units(magnitude) > threshold, weight.shape)


def _sums(matrix: Matrix, rows: int, columns: int) -> Matrix:
    down = np.add.reduceat(matrix, np.arange(0, matrix.shape[0], rows), axis=0)
    return np.add.reduceat(down, np.arange(0, matrix.shape[1], columns), axis=1)


def _spans(length: int, step: int) -> NDArray[np.int64]:
    """Lengths of the pieces of `step` that cover `length`; the last may be shorter."""
    return np.minimum(step, length - np.arange(0, length, step))


def _share(sparsity: float | None) -> float:
    if sparsity is None or not 0 <= sparsity <= 1:
        raise UsageError(f"sparsity={sparsity}: expected the share of weights to remove, 0 to 1")
    return sparsity


def _no_other(pattern: NofM, sparsity: float | None) -> None:
    if sparsity is not None and not math.isclose(sparsity, pattern.sparsity):
        raise UsageError(f"sparsity={sparsity} with {pattern}: it has {pattern.sparsity:g}; leave sparsity out")


def _block(name: str, pattern: Pattern) -> Block:
    if isinstance(pattern, NofM):
        raise UsageError(f"layer {name!r}: {pattern} has its own sparsity, it cannot share a budget; mask it alone")
    return pattern


def _sound(scores: Matrix) -> Matrix:
    if scores.ndim != 2 or 0 in scores.shape:
        raise UsageError(f"scores of shape {scores.shape}: expected a matrix (outputs, inputs), neither of them 0")
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).sum())
        raise ModelError(f"{bad} of {scores.size} scores are not finite: mend the weights")
    return scores
