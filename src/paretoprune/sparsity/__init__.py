"""Weight sparsity: where zeros may stand, how what is left is stored, and the kernels that gain from it."""

from __future__ import annotations

from paretoprune.sparsity.files import load_packed, save_packed
from paretoprune.sparsity.packing import Packed, PackedSigns, pack, pack_int8, pack_signs, unpack, unpack_signs
from paretoprune.sparsity.patterns import (
    Block,
    NofM,
    Pattern,
    Unstructured,
    mask_above,
    mask_of,
    masks_of,
    matrix_of,
    pattern_of,
    weight_of,
)

__all__ = [
    "Pattern",
    "Unstructured",
    "NofM",
    "Block",
    "pattern_of",
    "mask_of",
    "masks_of",
    "mask_above",
    "matrix_of",
    "weight_of",
    "Packed",
    "PackedSigns",
    "pack",
    "pack_int8",
    "pack_signs",
    "unpack",
    "unpack_signs",
    "save_packed",
    "load_packed",
]
