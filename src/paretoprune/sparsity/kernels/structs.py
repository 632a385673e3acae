"""What is handed to the kernels: ctypes structures that keep the arrays they point to."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretoprune.sparsity.packing import Packed, PackedSigns, pack_blocks, unpack_values
from paretoprune.sparsity.patterns import Block, matrix_of


class Rows(ctypes.Structure):
    """csrc/panel.hpp"""

    _fields_ = [(name, c_int64) for name in ("outputs", "inputs", "height", "parts")] + [
        (name, c_void_p) for name in ("start", "index", "value")
    ]


class Int8(ctypes.Structure):
    """csrc/int8.cpp"""

    _fields_ = [("outputs", c_int64), ("inputs", c_int64)] + [
        (name, c_void_p) for name in ("start", "index", "value", "total", "scale")
    ]


class Signs(ctypes.Structure):
    """csrc/signs.hpp"""

    _fields_ = [("outputs", c_int64), ("inputs", c_int64), ("words", c_int64), ("bits", c_void_p), ("scale", c_void_p)]


class Finish(ctypes.Structure):
    """csrc/panel.hpp"""

    _fields_ = [("bias", c_void_p), ("residual", c_void_p), ("activation", c_int32)]


class Scale(ctypes.Structure):
    """csrc/quantize.hpp; also Requantize of csrc/int8.cpp"""

    _fields_ = [("inverse", c_float), ("zero", c_int32)]


class Geometry(ctypes.Structure):
    """csrc/conv.hpp"""

    _fields_ = [
        (name, c_int64)
        for name in (
            *("channels", "high", "wide", "kernel_high", "kernel_wide", "stride_high", "stride_wide"),
            *("pad_top", "pad_left", "pad_bottom", "pad_right"),
        )
    ]


@dataclass(frozen=True)
class Weights:
    """A structure, and the arrays that its pointers point into."""

    struct: ctypes.Structure
    arrays: tuple[NDArray[Any], ...]


def pointer(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


NEAR_BYTES = 32 * 1024
"""The nearest cache of the usual processors."""


def rows_of(packed: Packed, panel_bytes: Callable[[Any], int]) -> Weights:
    """Blocks of r x c as c columns of r outputs. `panel_bytes`: what one input takes in a panel."""
    (outputs, inputs), (lines, across), block = packed.matrix_shape, packed.grid, packed.block
    index = (packed.at % across)[:, None] * block.columns + np.arange(block.columns)
    inside = index < inputs
    line = np.broadcast_to((packed.at // across)[:, None], inside.shape)[inside]
    index, value = index[inside], packed.value.transpose(0, 2, 1)[inside].astype(np.float32)
    parts = _parts(packed, panel_bytes(ctypes.byref(Rows(outputs, inputs, block.rows, 1))), len(index) / lines)
    channels, taps = packed.shape[1], inputs // packed.shape[1]
    part = index % channels * parts // channels
    index = index % channels * taps + index // channels  # a part's inputs side by side (csrc/conv.hpp)
    order = np.lexsort((index, part, line))
    start = _starts(line * parts + part, lines * parts)
    arrays = start, _held(index[order].astype(np.uint16)), _held(value[order])
    return Weights(Rows(outputs, inputs, block.rows, parts, *map(pointer, arrays)), arrays)


def _parts(packed: Packed, panel_bytes: int, columns: float) -> int:
    """How many groups of channels a row block of so many columns is worked off in.

    One group's inputs should stay in the nearest cache, but each costs as much as some columns to begin, and columns of
    four outputs use an input oftener (measured: docs/decisions/0024).
    """
    fewest = 100 if packed.block.rows % 4 == 0 else 25
    return max(1, min(-(-packed.matrix_shape[1] * panel_bytes // NEAR_BYTES), int(columns // fewest), packed.shape[1]))


def int8_of(packed: Packed, scale: float, zero: int, pairs: bool) -> Weights:
    """16 x 4 blocks, the channels of a tap filled up to four. `scale`, `zero` of the input; `pairs`: dot4.hpp."""
    whole = unpack_values(packed)
    channels = [(0, 0)] * whole.ndim
    channels[1] = (0, -whole.shape[1] % 4)
    blocks = pack_blocks(np.pad(whole, channels), Block(16, 4), packed.scale)
    lines, across = blocks.grid
    value = blocks.value
    if pairs:
        value = value.reshape(-1, 16, 2, 2).transpose(0, 2, 1, 3).astype(np.int16)
    total, scales = np.zeros(16 * lines, np.int32), np.zeros(16 * lines, np.float32)
    outputs = whole.shape[0]
    total[:outputs] = zero * matrix_of(whole).sum(axis=1, dtype=np.int32)
    scales[:outputs] = np.float32(scale) * (np.float32(1) if packed.scale is None else packed.scale)
    arrays = (
        _starts(blocks.at // across, lines),
        _held((blocks.at % across).astype(np.uint16)),
        _held(value),
        total,
        scales,
    )
    return Weights(Int8(outputs, across, *map(pointer, arrays)), arrays)


def signs_of(packed: PackedSigns) -> Weights:
    outputs, inputs = packed.matrix_shape
    bits, scale = _held(_by_channel(packed)), _held(packed.scale.astype(np.float32))
    return Weights(Signs(outputs, inputs, bits.shape[1], pointer(bits), pointer(scale)), (bits, scale))


def _by_channel(packed: PackedSigns) -> NDArray[np.uint32]:
    """Bits in the order of csrc/conv.hpp, zeros behind the last."""
    outputs, inputs = packed.matrix_shape
    bits = np.unpackbits(packed.bits.astype("<u4").view(np.uint8), axis=1, bitorder="little")[:, :inputs]
    bits = bits.reshape(outputs, -1, packed.shape[1]).swapaxes(1, 2).reshape(outputs, inputs)
    return np.packbits(np.pad(bits, [(0, 0), (0, -inputs % 32)]), axis=1, bitorder="little").view("<u4")


def _starts(line: NDArray[np.int64], lines: int) -> NDArray[np.int32]:
    counts = np.bincount(line, minlength=lines)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def _held(array: NDArray[Any]) -> NDArray[Any]:
    """Our own contiguous copy at a 64-byte boundary, with a place to point to even when it is empty."""
    whole = np.zeros(array.nbytes + 128, np.uint8)
    start = -pointer(whole) % 64
    held = whole[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    held[...] = array
    return held if array.size else whole.view(array.dtype)
