"""A packed weight in parts: three arrays and three words, as files and graphs hold it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretoprune.core.errors import FileError
from paretoprune.sparsity.packing import Packed, PackedSigns, decode, encode
from paretoprune.sparsity.patterns import pattern_of

SIGNS = "signs"
MOST_ELEMENTS = 2**40
Weight = Packed | PackedSigns


@dataclass(frozen=True)
class Parts:
    """`pattern`: also "signs", of binary weights. `coding`: how `at` names positions. `shape`: of the dense weight.

    `value`: blocks, or words of bits. `at`: bytes, none for signs. `scale`: (outputs,) or None.
    """

    pattern: str
    coding: str
    shape: tuple[int, ...]
    value: NDArray[Any]
    at: NDArray[np.uint8]
    scale: NDArray[np.float32] | None = None


def parts_of(weight: Weight) -> Parts:
    if isinstance(weight, PackedSigns):
        return Parts(SIGNS, "", weight.shape, weight.bits, np.zeros(0, np.uint8), weight.scale)
    at = encode(weight.at, math.prod(weight.grid), weight.coding)
    return Parts(str(weight.pattern), weight.coding, weight.shape, weight.value, at, weight.scale)


def weight_of_parts(
    pattern: str,
    coding: str,
    shape: Sequence[int],
    value: NDArray[Any],
    at: NDArray[np.uint8],
    scale: NDArray[np.float32] | None,
) -> Weight:
    """Raises FileError where the parts do not fit together; no position is ever out of bounds after this."""
    shape = tuple(int(size) for size in shape)
    if len(shape) < 2 or min(shape) < 1 or np.prod(shape, dtype=np.float64) > MOST_ELEMENTS:
        raise FileError(f"a packed weight of shape {shape}")
    if pattern == SIGNS:
        if scale is None:
            raise FileError(f"a binary weight of shape {shape} without scales; pack it again")
        return PackedSigns(shape, value, scale)
    if coding not in ("mask", "gaps"):
        raise FileError(f"positions coded as {coding!r}: expected 'mask' or 'gaps'")
    kind = pattern_of(pattern)
    empty = Packed(kind, shape, np.zeros(0, np.int64), value[:0], scale)
    positions = decode(at, math.prod(empty.grid), "mask" if coding == "mask" else "gaps")
    return Packed(kind, shape, positions, value, scale)
