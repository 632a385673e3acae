"""What the kernels must give, computed densely in double precision, and how weights with zeros are made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretoprune.sparsity import Pattern, mask_of, matrix_of, weight_of
from paretoprune.sparsity.kernels import Grid, Window

Array = NDArray[Any]


def sparse_weight(rng: np.random.Generator, shape: tuple[int, ...], pattern: Pattern, sparsity: float | None) -> Array:
    weight = rng.standard_normal(shape).astype(np.float32)
    matrix = matrix_of(weight)
    return weight_of((matrix * mask_of(pattern, rng.random(matrix.shape), sparsity)).astype(np.float32), shape)


def linear(x: Array, weight: Array) -> Array:
    return x.astype(np.float64) @ weight.astype(np.float64).T


def conv(x: Array, weight: Array, window: Window, fill: float = 0.0) -> Array:
    (top, left, bottom, right), (down, across) = window.padding, window.stride
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    views = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, ::down, ::across]
    return np.einsum("bchwij,ocij->bohw", views, weight.astype(np.float64), optimize=True)


def activated(y: Array, kind: str) -> Array:
    if kind == "relu":
        return np.maximum(y, 0)
    if kind == "gelu":
        return 0.5 * y * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    return y


def quantized(x: Array, grid: Grid) -> Array:
    steps = np.rint(x.astype(np.float32) * (np.float32(1) / np.float32(grid.scale)))
    return np.clip(steps.astype(np.float64) + grid.zero, 0, 255)


def close(got: Array, wanted: Array, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest result, or of 0.1 where terms of size 1 cancelled."""
    assert got.shape == wanted.shape
    scale = np.abs(wanted).max(initial=0.1)
    worst = np.abs(got - wanted).max(initial=0)
    assert worst <= tolerance * scale, f"off by {worst / scale:.1e} of the largest, {scale:.3g}"
