"""Layers that run packed weights on numpy arrays, channels first or as rows, as they are."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paretoprune.core.errors import DataError, UsageError
from paretoprune.sparsity.kernels.library import choose, library
from paretoprune.sparsity.kernels.structs import Finish, Geometry, Scale, Weights, int8_of, pointer, rows_of, signs_of
from paretoprune.sparsity.packing import Packed, PackedSigns

Array = NDArray[Any]
Activation = Literal["none", "relu", "gelu"]
ACTIVATIONS: tuple[Activation, ...] = ("none", "relu", "gelu")
MOST_THREADS = 64


@dataclass(frozen=True)
class End:
    """What follows the product, in this order: + bias (outputs,), + residual (given with the call), activation."""

    bias: NDArray[np.float32] | None = None
    activation: Activation = "none"


@dataclass(frozen=True)
class Window:
    """Stride and zero padding (top, left, bottom, right) of a convolution."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        if min(self.stride) < 1 or min(self.padding) < 0:
            raise UsageError(f"stride {self.stride}, padding {self.padding}: at least 1 and 0")


@dataclass(frozen=True)
class Grid:
    """An unsigned 8-bit grid: q = clamp(round(x / scale) + zero, 0, 255), ties to even, x * float32(1 / scale)."""

    scale: float
    zero: int = 0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0 and 0 <= self.zero <= 255):
            raise UsageError(f"scale={self.scale}, zero={self.zero}: expected a scale above 0 and a zero of 0 to 255")

    def struct(self) -> Scale:
        return Scale(float(np.float32(1) / np.float32(self.scale)), self.zero)


class Kernel:
    """Weights laid out for one instruction set. Subclasses say which functions are called, and with what.

    `y(x, residual, out)` checks its arguments; inside nothing is allocated but `y` (unless `out` is given) and, once
    for each size of input, the memory to work in. A layer may be called from several threads: one waits for the other.
    """

    out_type: type[np.generic] = np.float32

    def __init__(self, weights: Weights, outputs: int, end: End, threads: int, wanted: str | None) -> None:
        if not 1 <= threads <= MOST_THREADS:
            raise UsageError(f"threads={threads}: expected 1 to {MOST_THREADS}")
        if end.activation not in ACTIVATIONS:
            raise UsageError(f"activation {end.activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        self.instruction_set, self.threads, self.outputs = choose(wanted), threads, outputs
        self._library, self._weights = library(self.instruction_set), weights
        self._bias = None if end.bias is None else _vector(end.bias, outputs)
        self._bias_at = None if self._bias is None else pointer(self._bias)
        self._activation = ACTIVATIONS.index(end.activation)
        self._work: dict[tuple[int, ...], tuple[Array, int]] = {}
        self._lock = threading.Lock()

    def _finish(self, residual: Array | None) -> Finish:
        return Finish(self._bias_at, None if residual is None else pointer(residual), self._activation)

    def _room(self, key: tuple[int, ...], size: Callable[[], int]) -> int:
        """64-byte aligned memory for inputs of this size; the last size's is kept."""
        if key not in self._work:
            work = _aligned(size())
            self._work = {key: (work, pointer(work))}
        return self._work[key][1]

    def _output(self, shape: tuple[int, ...], x: Array, residual: Array | None, out: Array | None) -> Array:
        if residual is not None:
            _check("residual", residual, np.float32, shape)
        if out is None:
            return np.empty(shape, self.out_type)
        _check("out", out, self.out_type, shape)
        for name, other in (("x", x), ("residual", residual)):
            if other is not None and np.may_share_memory(out, other):
                raise DataError(f"out lies over {name}: give it memory of its own")
        return out

    @property
    def _struct(self) -> Any:
        return ctypes.byref(self._weights.struct)


class _Linear(Kernel):
    """y (…, outputs) of x (…, inputs), float32."""

    inputs: int

    def __call__(self, x: Array, residual: Array | None = None, out: Array | None = None) -> Array:
        if x.ndim < 1 or x.shape[-1] != self.inputs:
            raise DataError(f"x of shape {x.shape}: expected (…, {self.inputs})")
        _check("x", x, np.float32, x.shape)
        y = self._output((*x.shape[:-1], self.outputs), x, residual, out)
        rows = x.size // self.inputs
        if rows:
            with self._lock:
                self._run(x, y, rows, self._finish(residual))
        return y

    def _run(self, x: Array, y: Array, rows: int, finish: Finish) -> None:
        raise NotImplementedError


class _Conv(Kernel):
    """y (images, outputs, high, wide) of x (images, channels, high, wide), float32. `name`: of the function, pp_…"""

    name: str

    def __init__(
        self, weights: Weights, shape: tuple[int, ...], window: Window, end: End, threads: int, wanted: str | None
    ) -> None:
        if len(shape) != 4:
            raise UsageError(f"a convolution weight of shape {shape}: expected (outputs, channels, high, wide)")
        super().__init__(weights, shape[0], end, threads, wanted)
        self._shape, self._window = shape, window

    def __call__(self, x: Array, residual: Array | None = None, out: Array | None = None) -> Array:
        if x.ndim != 4 or x.shape[1] != self._shape[1]:
            raise DataError(f"x of shape {x.shape}: expected (images, {self._shape[1]}, high, wide)")
        _check("x", x, np.float32, x.shape)
        geometry = Geometry(*x.shape[1:], *self._shape[2:], *self._window.stride, *self._window.padding)
        y = self._output((x.shape[0], self.outputs, *self._sizes(x.shape)), x, residual, out)
        if x.shape[0]:
            with self._lock:
                self._run(x, y, geometry, self._finish(residual))
        return y

    def _sizes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        (top, left, bottom, right), stride = self._window.padding, self._window.stride
        padded = shape[2] + top + bottom, shape[3] + left + right
        high, wide = ((p - k) // s + 1 for p, k, s in zip(padded, self._shape[2:], stride, strict=True))
        if high < 1 or wide < 1 or 0 in shape[1:]:
            raise DataError(f"x of shape {shape}: smaller than the kernel {self._shape[2:]} with its padding")
        # Distances within an image are 32-bit numbers.
        if (padded[0] + stride[0]) * (padded[1] + stride[1]) * (shape[1] + 4) >= 2**31:
            raise DataError(f"x of shape {shape}: an image of 2^31 elements or more; cut it into parts")
        return high, wide

    def _run(self, x: Array, y: Array, geometry: Geometry, finish: Finish) -> None:
        shape = ctypes.byref(geometry)
        call, size = (getattr(self._library, f"pp_{self.name}{end}") for end in ("", "_work"))
        work = self._room(x.shape[1:], lambda: size(self._struct, shape, self.threads))
        call(
            *(self._struct, shape, ctypes.byref(finish), _p(x), _p(y), _n(len(x)), ctypes.c_void_p(work), self.threads)
        )


class Linear(_Linear):
    """fp32, any blocks; equal to the dense product of what is kept, up to rounding."""

    def __init__(
        self, packed: Packed, end: End | None = None, threads: int = 1, instruction_set: str | None = None
    ) -> None:
        weights = rows_of(_float(packed), library(instruction_set).pp_panel_bytes)
        super().__init__(weights, packed.shape[0], end or End(), threads, instruction_set)
        self.inputs = packed.matrix_shape[1]

    def _run(self, x: Array, y: Array, rows: int, finish: Finish) -> None:
        work = self._room((rows,), lambda: self._library.pp_linear_work(self._struct, _n(rows), self.threads))
        self._library.pp_linear(
            self._struct, ctypes.byref(finish), _p(x), _p(y), _n(rows), ctypes.c_void_p(work), self.threads
        )


class Conv(_Conv):
    """fp32, any blocks."""

    name = "conv"

    def __init__(
        self,
        packed: Packed,
        window: Window | None = None,
        end: End | None = None,
        threads: int = 1,
        instruction_set: str | None = None,
    ) -> None:
        weights = rows_of(_float(packed), library(instruction_set).pp_panel_bytes)
        super().__init__(weights, packed.shape, window or Window(), end or End(), threads, instruction_set)


class _Int8(Kernel):
    def __init__(self, grid: Grid, out_grid: Grid | None) -> None:
        self._in = grid.struct()
        self._out = Scale(0.0, 0) if out_grid is None else out_grid.struct()
        self.out_type = np.float32 if out_grid is None else np.uint8

    def _sound(self, status: int) -> None:
        if status:
            raise DataError("x holds NaN or infinity, which 8 bits cannot hold: mend the input")


class Int8Linear(_Int8, _Linear):
    """8-bit weights; x is quantized to `grid` inside. y float32, or 8-bit numbers of `out_grid`. Sums are exact."""

    def __init__(
        self,
        packed: Packed,
        grid: Grid,
        out_grid: Grid | None = None,
        end: End | None = None,
        threads: int = 1,
        instruction_set: str | None = None,
    ) -> None:
        _Int8.__init__(self, grid, out_grid)
        weights = int8_of(_whole(packed), grid.scale, grid.zero, bool(library(instruction_set).pp_int8_pairs()))
        _Linear.__init__(self, weights, packed.shape[0], end or End(), threads, instruction_set)
        self.inputs = packed.matrix_shape[1]

    def _run(self, x: Array, y: Array, rows: int, finish: Finish) -> None:
        work = self._room((rows,), lambda: self._library.pp_int8_linear_work(self._struct, _n(rows)))
        ends = (ctypes.byref(each) for each in (self._in, self._out, finish))
        self._sound(
            self._library.pp_int8_linear(
                *(self._struct, *ends, _n(self.inputs), _p(x), _p(y), _n(rows), ctypes.c_void_p(work), self.threads)
            )
        )


class Int8Conv(_Int8, _Conv):
    """As Int8Linear, for images."""

    def __init__(
        self,
        packed: Packed,
        grid: Grid,
        out_grid: Grid | None = None,
        window: Window | None = None,
        end: End | None = None,
        threads: int = 1,
        instruction_set: str | None = None,
    ) -> None:
        _Int8.__init__(self, grid, out_grid)
        weights = int8_of(_whole(packed), grid.scale, grid.zero, bool(library(instruction_set).pp_int8_pairs()))
        _Conv.__init__(self, weights, packed.shape, window or Window(), end or End(), threads, instruction_set)

    def _run(self, x: Array, y: Array, geometry: Geometry, finish: Finish) -> None:
        shape = ctypes.byref(geometry)
        work = self._room(x.shape[1:], lambda: self._library.pp_int8_conv_work(self._struct, shape))
        ends = (ctypes.byref(each) for each in (self._in, self._out, finish))
        self._sound(
            self._library.pp_int8_conv(
                *(self._struct, shape, *ends, _p(x), _p(y), _n(len(x)), ctypes.c_void_p(work), self.threads)
            )
        )


class BinaryLinear(_Linear):
    """Weights of ±scale. `binarized`: of x only the signs are used (zero counts as +1), and bits are counted."""

    def __init__(
        self,
        packed: PackedSigns,
        end: End | None = None,
        binarized: bool = False,
        threads: int = 1,
        instruction_set: str | None = None,
    ) -> None:
        super().__init__(signs_of(packed), packed.shape[0], end or End(), threads, instruction_set)
        self.inputs, self._binarized = packed.matrix_shape[1], binarized

    def _run(self, x: Array, y: Array, rows: int, finish: Finish) -> None:
        code = self._library
        if self._binarized:
            call, work = code.pp_popcount, self._room((rows,), lambda: code.pp_popcount_work(self._struct, _n(rows)))
        else:
            call = code.pp_binary_linear
            work = self._room((rows,), lambda: code.pp_binary_linear_work(self._struct, _n(rows), self.threads))
        call(self._struct, ctypes.byref(finish), _p(x), _p(y), _n(rows), ctypes.c_void_p(work), self.threads)


class BinaryConv(_Conv):
    """Weights of ±scale on images."""

    name = "binary_conv"

    def __init__(
        self,
        packed: PackedSigns,
        window: Window | None = None,
        end: End | None = None,
        threads: int = 1,
        instruction_set: str | None = None,
    ) -> None:
        super().__init__(signs_of(packed), packed.shape, window or Window(), end or End(), threads, instruction_set)


def _n(number: int) -> ctypes.c_int64:
    return ctypes.c_int64(number)


def _p(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(pointer(array))


def _aligned(size: int) -> NDArray[np.uint8]:
    whole = np.empty(size + 64, np.uint8)
    return whole[-pointer(whole) % 64 :]


def _vector(bias: Array, outputs: int) -> NDArray[np.float32]:
    if bias.shape != (outputs,) or bias.dtype != np.float32:
        raise UsageError(f"a bias of {bias.dtype} {bias.shape}: expected float32 ({outputs},)")
    if not np.isfinite(bias).all():
        raise UsageError("a bias that is not finite: mend it")
    return np.array(bias, order="C")


def _check(name: str, given: Array, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if given.dtype != dtype:
        raise DataError(f"{name} of {given.dtype}: expected {np.dtype(dtype)}; convert it")
    if given.shape != shape:
        raise DataError(f"{name} of shape {given.shape}: expected {shape}")
    if not given.flags.c_contiguous:
        raise DataError(f"{name} of strides {given.strides} is not contiguous: pass np.ascontiguousarray({name})")


def _float(packed: Packed) -> Packed:
    if packed.value.dtype != np.float32:
        raise UsageError(f"weights of {packed.value.dtype}: use the Int8 layers, or pack the weight as float32")
    return packed


def _whole(packed: Packed) -> Packed:
    if packed.value.dtype != np.int8 or packed.scale is None:
        raise UsageError(f"weights of {packed.value.dtype}: pack them with pack_int8")
    return packed
