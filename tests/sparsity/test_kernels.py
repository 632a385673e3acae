"""Every kernel against the dense result, on every instruction set that this machine has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretoprune.sparsity import Pattern, pack, pack_int8, pack_signs, pattern_of, unpack_signs
from paretoprune.sparsity.kernels import (
    SETS,
    BinaryConv,
    BinaryLinear,
    Conv,
    End,
    Grid,
    Int8Conv,
    Int8Linear,
    Linear,
    Window,
    available,
    built,
)
from paretoprune.sparsity.packing import unpack_values
from sparse_reference import activated, close, conv, linear, quantized, sparse_weight

pytestmark = pytest.mark.skipif(not available(), reason="no compiler was there when the package was installed")

PATTERNS = ("unstructured", "4x1", "16x1", "16x4", "2:4", "3x2", "8x1", "1x4")
Array = np.ndarray[Any, Any]
few = settings(max_examples=30)


@pytest.fixture(params=SETS, scope="module")
def instruction_set(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name not in built():
        pytest.skip(f"{name} was not compiled on this machine")
    if name not in available():
        pytest.skip(f"this processor has no {name}: its kernels are compiled but were NOT run")
    return name


@dataclass(frozen=True)
class Case:
    seed: int
    pattern: Pattern
    sparsity: float | None
    activation: Any
    bias: bool
    residual: bool
    threads: int

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def weight(self, shape: tuple[int, ...]) -> Array:
        return sparse_weight(self.rng, shape, self.pattern, self.sparsity)

    def end(self, outputs: int) -> End:
        bias = self.rng.standard_normal(outputs).astype(np.float32) if self.bias else None
        return End(bias, self.activation)

    def rest(self, y: Array) -> Array | None:
        other = np.random.default_rng(self.seed + 1)
        return other.standard_normal(y.shape).astype(np.float32) if self.residual else None

    def finished(self, y: Array, end: End, residual: Array | None) -> Array:
        """`y` in double precision, outputs on axis 1 (images) or last (rows)."""
        if end.bias is not None:
            y = y + (end.bias[:, None, None] if y.ndim == 4 else end.bias)
        return activated(y if residual is None else y + residual, end.activation)


@st.composite
def cases(draw: st.DrawFn, patterns: tuple[str, ...] = PATTERNS) -> Case:
    pattern = pattern_of(draw(st.sampled_from(patterns)))
    sparsity = None if ":" in str(pattern) else draw(st.sampled_from((0.0, 0.3, 0.8, 0.95, 1.0)))
    activation = draw(st.sampled_from(("none", "relu", "gelu")))
    flags = draw(st.tuples(st.booleans(), st.booleans()))
    return Case(draw(st.integers(0, 2**31)), pattern, sparsity, activation, *flags, draw(st.sampled_from((1, 2, 5))))


sizes = st.integers(1, 70)
windows = st.builds(Window, st.tuples(*[st.integers(1, 3)] * 2), st.tuples(*[st.integers(0, 3)] * 4))


@st.composite
def images(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], Window]:
    """Shapes of x and of the weight, and a window that fits."""
    kernel = draw(st.tuples(*[st.sampled_from((1, 1, 2, 3, 5))] * 2))
    high, wide = draw(st.tuples(*[st.integers(1, 40)] * 2))
    channels, outputs = draw(st.integers(1, 24)), draw(st.integers(1, 40))
    size = max(high, kernel[0]), max(wide, kernel[1])
    return (draw(st.integers(1, 2)), channels, *size), (outputs, channels, *kernel), draw(windows)


@few
@given(cases(), st.one_of(sizes, st.integers(1, 9)), sizes, sizes)
def test_linear(instruction_set: str, case: Case, rows: int, outputs: int, inputs: int) -> None:
    weight, end = case.weight((outputs, inputs)), case.end(outputs)
    x = case.rng.standard_normal((rows, inputs)).astype(np.float32)
    product = linear(x, weight)
    rest = case.rest(product)
    layer = Linear(pack(weight, case.pattern), end, case.threads, instruction_set)
    close(layer(x, rest), case.finished(product, end, rest))


@few
@given(cases(), images())
def test_conv(instruction_set: str, case: Case, shapes: tuple[Any, Any, Window]) -> None:
    x_shape, shape, window = shapes
    weight, end = case.weight(shape), case.end(shape[0])
    x = case.rng.standard_normal(x_shape).astype(np.float32)
    product = conv(x, weight, window)
    rest = case.rest(product)
    layer = Conv(pack(weight, case.pattern), window, end, case.threads, instruction_set)
    close(layer(x, rest), case.finished(product, end, rest))


grids = st.builds(Grid, st.floats(0.005, 0.1), st.integers(0, 255))


@few
@given(cases(("16x4", "unstructured", "4x1")), grids, sizes, sizes, sizes)
def test_int8_linear_sums_are_exact(
    instruction_set: str, case: Case, grid: Grid, rows: int, outputs: int, inputs: int
) -> None:
    weight = pack_int8(case.weight((outputs, inputs)), case.pattern)
    x = (4 * case.rng.standard_normal((rows, inputs))).astype(np.float32)
    sums = linear(quantized(x, grid) - grid.zero, unpack_values(weight))
    got = Int8Linear(weight, grid, threads=case.threads, instruction_set=instruction_set)(x)
    scale = np.float32(grid.scale) * weight.scale
    assert np.array_equal(got, sums.astype(np.float32) * scale)


@few
@given(cases(("16x4",)), grids, images())
def test_int8_conv_sums_are_exact(
    instruction_set: str, case: Case, grid: Grid, shapes: tuple[Any, Any, Window]
) -> None:
    x_shape, shape, window = shapes
    weight = pack_int8(case.weight(shape), case.pattern)
    x = (4 * case.rng.standard_normal(x_shape)).astype(np.float32)
    sums = conv(quantized(x, grid) - grid.zero, unpack_values(weight), window)
    got = Int8Conv(weight, grid, window=window, threads=case.threads, instruction_set=instruction_set)(x)
    scale = np.float32(grid.scale) * weight.scale
    assert np.array_equal(got, sums.astype(np.float32) * scale[:, None, None])


@few
@given(cases(("16x4",)), grids, images())
def test_int8_ends(instruction_set: str, case: Case, grid: Grid, shapes: tuple[Any, Any, Window]) -> None:
    x_shape, shape, window = shapes
    weight, end = pack_int8(case.weight(shape), case.pattern), case.end(shape[0])
    x = case.rng.standard_normal(x_shape).astype(np.float32)
    product = conv(quantized(x, grid) - grid.zero, unpack_values(weight), window)
    rest = case.rest(product)
    wanted = case.finished(product * (grid.scale * weight.scale.astype(np.float64))[:, None, None], end, rest)
    layer = Int8Conv(weight, grid, None, window, end, case.threads, instruction_set)
    real = layer(x, rest)
    close(real, wanted)
    out = Grid(0.04, 100)
    whole = Int8Conv(weight, grid, out, window, end, case.threads, instruction_set)(x, rest)
    assert whole.dtype == np.uint8
    assert np.array_equal(whole, quantized(real, out))


@pytest.mark.parametrize("zero", [0, 255])
def test_int8_does_not_saturate(instruction_set: str, zero: int) -> None:
    """Pairs of the largest weights and activations: what 16-bit sums would clip."""
    weight = pack_int8(np.ones((32, 64), np.float32), pattern_of("16x4"))
    x = np.full((5, 64), 1e3 if zero == 0 else -1e3, np.float32)
    got = Int8Linear(weight, Grid(1.0, zero), instruction_set=instruction_set)(x)
    sums = np.float32(64 * 127 * 255 * (1 if zero == 0 else -1))
    assert np.array_equal(got, np.broadcast_to(sums * weight.scale, (5, 32)))


@few
@given(cases(), sizes, sizes, sizes)
def test_binary_linear(instruction_set: str, case: Case, rows: int, outputs: int, inputs: int) -> None:
    weight, end = pack_signs(case.weight((outputs, inputs))), case.end(outputs)
    x = case.rng.standard_normal((rows, inputs)).astype(np.float32)
    product = linear(x, unpack_signs(weight))
    rest = case.rest(product)
    close(BinaryLinear(weight, end, False, case.threads, instruction_set)(x, rest), case.finished(product, end, rest))
    product = linear(np.where(x >= 0, 1, -1), unpack_signs(weight))
    close(BinaryLinear(weight, end, True, case.threads, instruction_set)(x, rest), case.finished(product, end, rest))


@few
@given(cases(), images())
def test_binary_conv(instruction_set: str, case: Case, shapes: tuple[Any, Any, Window]) -> None:
    x_shape, shape, window = shapes
    weight, end = pack_signs(case.weight(shape)), case.end(shape[0])
    x = case.rng.standard_normal(x_shape).astype(np.float32)
    product = conv(x, unpack_signs(weight), window)
    rest = case.rest(product)
    layer = BinaryConv(weight, window, end, case.threads, instruction_set)
    close(layer(x, rest), case.finished(product, end, rest))


@settings(max_examples=5)
@given(cases(), st.sampled_from([(300, 130, 200), (50, 1100, 90), (30, 70, 700)]))
def test_larger_than_the_tiles(instruction_set: str, case: Case, shape: tuple[int, int, int]) -> None:
    rows, outputs, inputs = shape
    weight, x = case.weight((outputs, inputs)), case.rng.standard_normal((rows, inputs)).astype(np.float32)
    layer = Linear(pack(weight, case.pattern), threads=case.threads, instruction_set=instruction_set)
    close(layer(x), linear(x, weight))
    signs = pack_signs(weight)
    close(BinaryLinear(signs, instruction_set=instruction_set)(x), linear(x, unpack_signs(signs)))
    grid, eight = Grid(0.03, 120), pack_int8(weight, pattern_of("16x4"))
    sums = linear(quantized(x, grid) - grid.zero, unpack_values(eight)).astype(np.float32)
    got = Int8Linear(eight, grid, threads=case.threads, instruction_set=instruction_set)(x)
    assert np.array_equal(got, sums * (np.float32(grid.scale) * eight.scale))


@settings(max_examples=5)
@given(cases(), st.sampled_from([(1, 45, 9, 30), (2, 130, 7, 7)]))
def test_channels_in_parts(instruction_set: str, case: Case, shape: tuple[int, ...]) -> None:
    """More inputs than the nearest cache holds are worked off in groups of channels."""
    weight, window = case.weight((70, shape[1], 3, 3)), Window(padding=(1, 1, 1, 1))
    x, end = case.rng.standard_normal(shape).astype(np.float32), case.end(70)
    product = conv(x, weight, window)
    rest = case.rest(product)
    layer = Conv(pack(weight, case.pattern), window, end, case.threads, instruction_set)
    close(layer(x, rest), case.finished(product, end, rest))


@pytest.mark.parametrize("pattern", ["unstructured", "4x1", "16x1", "32x1"])
@pytest.mark.parametrize("inputs", [130, 700])
def test_every_height_in_parts_and_pieces(instruction_set: str, pattern: str, inputs: int) -> None:
    """Sums that are put down and taken up again, for whatever reason, are not lost."""
    rng = np.random.default_rng(0)
    weight = sparse_weight(rng, (40, inputs), pattern_of(pattern), 0.1)
    x = rng.standard_normal((30, inputs)).astype(np.float32)
    close(Linear(pack(weight, pattern_of(pattern)), instruction_set=instruction_set)(x), linear(x, weight))
    image, kernel = x[:1].reshape(1, inputs, 1, 1) * np.ones((7, 7), np.float32), weight.reshape(40, inputs, 1, 1)
    layer = Conv(pack(kernel, pattern_of(pattern)), instruction_set=instruction_set)
    close(layer(image), conv(image, kernel, Window()))
