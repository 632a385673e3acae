"""Sparse weights in the form that is stored and computed with: positions of blocks, and the blocks' values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paretoprune.core.errors import FileError, ModelError, UsageError
from paretoprune.sparsity.patterns import Block, Pattern, Unstructured, matrix_of, weight_of

Coding = Literal["mask", "gaps"]
Bytes = NDArray[np.uint8]

MOST_INPUTS = 65_536
"""Inputs of a layer that the kernels' 16-bit indices can name."""


@dataclass(frozen=True)
class Packed:
    """Blocks of one weight that are not all zero, by row block, then by column block.

    `shape`: the weight's own, (N, K) or (O, I, kernel…). `at`: (blocks,) row block × column blocks + column block,
    ascending. `value`: (blocks, rows, columns), float32 or int8; at the edges of the weight it is filled up with zeros.
    `scale`: (outputs,) of int8 weights.
    """

    pattern: Pattern
    shape: tuple[int, ...]
    at: NDArray[np.int64]
    value: NDArray[Any]
    scale: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        block, (outputs, inputs) = self.block, self.matrix_shape
        wrong = _fault(self.at, self.value, block, math.prod(self.grid))
        if wrong is None and self.scale is not None and self.scale.shape != (outputs,):
            wrong = f"{self.scale.shape} scales for {outputs} outputs"
        if wrong:
            raise FileError(f"packed weight of shape {self.shape}, {self.pattern}: {wrong}; pack the weight again")
        if inputs > MOST_INPUTS:
            raise UsageError(f"a weight with {inputs} inputs: the kernels take up to {MOST_INPUTS}; leave it dense")

    @property
    def block(self) -> Block:
        return self.pattern if isinstance(self.pattern, Block) else Unstructured()

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def grid(self) -> tuple[int, int]:
        """Row blocks, column blocks."""
        outputs, inputs = self.matrix_shape
        return -(-outputs // self.block.rows), -(-inputs // self.block.columns)

    @property
    def sparsity(self) -> float:
        """Share of the weight that is in no stored block."""
        sizes = self.block.sizes(self.matrix_shape).ravel()
        return 1 - int(sizes[self.at].sum()) / max(1, math.prod(self.shape))

    @property
    def coding(self) -> Coding:
        """The smaller of the two codings of the positions."""
        return "mask" if -(-math.prod(self.grid) // 8) <= len(gaps_of(self.at)) else "gaps"

    @property
    def size_bytes(self) -> int:
        """What is stored: values, positions, scales."""
        positions = encode(self.at, math.prod(self.grid), self.coding)
        return self.value.nbytes + positions.nbytes + (0 if self.scale is None else self.scale.nbytes)


@dataclass(frozen=True)
class PackedSigns:
    """Binary weights. `bits`: (outputs, ceil(inputs / 32)), first input lowest, 1 for +1. `scale`: (outputs,)."""

    shape: tuple[int, ...]
    bits: NDArray[np.uint32]
    scale: NDArray[np.float32]

    def __post_init__(self) -> None:
        outputs, inputs = self.matrix_shape
        wanted = (outputs, -(-inputs // 32))
        if self.bits.shape != wanted or self.scale.shape != (outputs,):
            given = f"{self.bits.shape} words and {self.scale.shape} scales"
            raise FileError(f"binary weight of shape {self.shape}: {given}, expected {wanted}; pack it again")
        if not np.isfinite(self.scale).all():
            raise FileError(f"binary weight of shape {self.shape}: a scale is not finite; pack it again")

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def size_bytes(self) -> int:
        return self.bits.nbytes + self.scale.nbytes


def pack(weight: NDArray[np.float32], pattern: Pattern) -> Packed:
    """The blocks of a dense float32 weight that hold anything but zeros."""
    return pack_blocks(_finite(weight), pattern, None)


def pack_int8(weight: NDArray[np.float32], pattern: Pattern) -> Packed:
    """As `pack`, in 8 bits: symmetric, one scale for an output, the largest weight at 127."""
    matrix = matrix_of(_finite(weight))
    largest = np.abs(matrix).max(axis=1, initial=0)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    whole = np.clip(np.rint(matrix / scale[:, None]), -127, 127).astype(np.int8)
    return pack_blocks(weight_of(whole, weight.shape), pattern, scale)


def pack_blocks(weight: NDArray[Any], pattern: Pattern, scale: NDArray[np.float32] | None) -> Packed:
    """The blocks of any numbers, taken as they are."""
    matrix, block = matrix_of(weight), pattern if isinstance(pattern, Block) else Unstructured()
    outputs, inputs = matrix.shape
    lines, across = -(-outputs // block.rows), -(-inputs // block.columns)
    whole = np.zeros((lines * block.rows, across * block.columns), dtype=matrix.dtype)
    whole[:outputs, :inputs] = matrix
    apart = whole.reshape(lines, block.rows, across, block.columns).transpose(0, 2, 1, 3)
    blocks = apart.reshape(-1, block.rows, block.columns)
    at = np.flatnonzero(blocks.any(axis=(1, 2))).astype(np.int64)
    return Packed(pattern, tuple(weight.shape), at, np.ascontiguousarray(blocks[at]), scale)


def pack_signs(weight: NDArray[np.float32]) -> PackedSigns:
    """Signs (zero counts as +1) times the mean magnitude of each output (XNOR-Net, arXiv:1603.05279, eq. 6)."""
    matrix = matrix_of(_finite(weight))
    outputs, inputs = matrix.shape
    padded = np.zeros((outputs, -(-inputs // 32) * 32), dtype=np.uint8)
    padded[:, :inputs] = matrix >= 0
    bits = np.packbits(padded, axis=1, bitorder="little").view("<u4")
    return PackedSigns(weight.shape, bits, np.abs(matrix).mean(axis=1, dtype=np.float64).astype(np.float32))


def unpack(packed: Packed) -> NDArray[np.float32]:
    """The dense weight; of int8 weights what they stand for."""
    values: NDArray[np.float32] = unpack_values(packed).astype(np.float32)
    return values if packed.scale is None else values * packed.scale.reshape(-1, *[1] * (values.ndim - 1))


def unpack_values(packed: Packed) -> NDArray[Any]:
    """The dense weight, of the type that is stored."""
    block, (lines, across) = packed.block, packed.grid
    filled = np.zeros((lines * across, block.rows, block.columns), dtype=packed.value.dtype)
    filled[packed.at] = packed.value
    whole = filled.reshape(lines, across, block.rows, block.columns).transpose(0, 2, 1, 3)
    outputs, inputs = packed.matrix_shape
    matrix = whole.reshape(lines * block.rows, across * block.columns)[:outputs, :inputs]
    return weight_of(matrix, packed.shape)


def unpack_signs(packed: PackedSigns) -> NDArray[np.float32]:
    bits = np.unpackbits(packed.bits.astype("<u4").view(np.uint8), axis=1, bitorder="little")
    signs = 2.0 * bits[:, : packed.matrix_shape[1]] - 1
    return weight_of((signs * packed.scale[:, None]).astype(np.float32), packed.shape)


def encode(at: NDArray[np.int64], cells: int, coding: Coding) -> Bytes:
    """Positions below `cells` as one bit per cell, or as gaps."""
    if coding == "gaps":
        return gaps_of(at)
    cell = np.zeros(cells, dtype=np.uint8)
    cell[at] = 1
    return np.packbits(cell)


def decode(code: Bytes, cells: int, coding: Coding) -> NDArray[np.int64]:
    """Raises FileError where the code is cut short or names positions that do not exist."""
    if coding == "mask":
        if len(code) != -(-cells // 8):
            raise FileError(f"a mask of {len(code)} bytes for {cells} blocks: truncated or altered; pack it again")
        return np.flatnonzero(np.unpackbits(code, count=cells)).astype(np.int64)
    at = np.cumsum(code, dtype=np.int64)[code < 255] - 1
    if (len(code) and code[-1] == 255) or (len(at) and (at[0] < 0 or at[-1] >= cells or (np.diff(at) <= 0).any())):
        raise FileError(f"positions that do not fit into {cells} blocks: truncated or altered; pack the weight again")
    return at


def gaps_of(at: NDArray[np.int64]) -> Bytes:
    """Distances to the position before (the first from −1) in one byte; 255 says "255 and more to come"."""
    distance = np.diff(at, prepend=-1)
    code = np.full(int((distance // 255).sum()) + len(at), 255, dtype=np.uint8)
    code[np.cumsum(distance // 255 + 1) - 1] = distance % 255
    return code


def _finite(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    if weight.dtype != np.float32:
        raise UsageError(f"a weight of {weight.dtype}: expected float32; convert it")
    if weight.ndim < 2 or 0 in weight.shape:
        raise UsageError(f"a weight of shape {weight.shape}: expected (outputs, inputs…), none of them 0")
    if not np.isfinite(weight).all():
        raise ModelError(f"a weight of shape {weight.shape} holds NaN or infinity: mend it before packing")
    return weight


def _fault(at: NDArray[np.int64], value: NDArray[Any], block: Block, cells: int) -> str | None:
    if at.ndim != 1 or value.shape != (len(at), block.rows, block.columns):
        return f"values of shape {value.shape} for {len(at)} blocks"
    if value.dtype not in (np.float32, np.int8):
        return f"values of {value.dtype}"
    if len(at) and (at[0] < 0 or at[-1] >= cells or (np.diff(at) <= 0).any()):
        return f"positions that are not ascending within {cells} blocks"
    if value.dtype == np.float32 and not np.isfinite(value).all():
        return "values that are not finite"
    return None
