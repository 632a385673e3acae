"""The packed form in which a weight with zeros is computed fastest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretoprune.sparsity.packing import pack, pack_int8, pack_signs
from paretoprune.sparsity.parts import Weight
from paretoprune.sparsity.patterns import Block, Pattern, Unstructured, matrix_of

COSTS: Mapping[Pattern, float] = {Block(16, 1): 1.0, Block(4, 1): 1.03, Unstructured(): 1.6}
"""What a stored weight costs in blocks of this shape, relative to 16x1 (benchmarks/sparse.py)."""

INT8 = Block(16, 4)


def stored(weight: NDArray[np.float32]) -> Weight:
    """In 32 bits, or as signs where every output has one magnitude."""
    if _is_signs(weight):
        return pack_signs(weight)
    matrix = matrix_of(weight)
    best = min(COSTS, key=lambda pattern: _density(matrix, pattern) * COSTS[pattern])
    return pack(weight, best)


def stored_int8(weight: NDArray[np.float32]) -> Weight:
    return pack_int8(weight, INT8)


def sparsity_of(weight: Weight) -> float:
    """Share of the weight that is not stored; of signs none is left out."""
    return float(getattr(weight, "sparsity", 0.0))


def _density(matrix: NDArray[Any], pattern: Pattern) -> float:
    """Share of the blocks that hold anything but zeros."""
    assert isinstance(pattern, Block)
    return float((pattern.units(matrix != 0) > 0).mean())


def _is_signs(weight: NDArray[np.float32]) -> bool:
    """XNOR-Net's weights: ± one number for each output, and enough inputs that it is no accident."""
    magnitude = np.abs(matrix_of(weight))
    if magnitude.shape[1] < 8 or not (magnitude > 0).all():
        return False
    return bool(np.allclose(magnitude, magnitude.mean(axis=1, keepdims=True), rtol=1e-6, atol=0))
