"""The kernel of a packed weight, whatever it holds."""

from __future__ import annotations

from paretoprune.core.errors import UsageError
from paretoprune.sparsity.kernels.layers import (
    BinaryConv,
    BinaryLinear,
    Conv,
    End,
    Grid,
    Int8Conv,
    Int8Linear,
    Linear,
    Window,
)
from paretoprune.sparsity.packing import PackedSigns
from paretoprune.sparsity.parts import Weight

Layer = Linear | Conv | Int8Linear | Int8Conv | BinaryLinear | BinaryConv


def kernel_of(
    weight: Weight,
    end: End | None = None,
    window: Window | None = None,
    grid: Grid | None = None,
    threads: int = 1,
    instruction_set: str | None = None,
) -> Layer:
    """A layer of float32 arrays. `window` of a convolution; `grid` of the input of 8-bit weights."""
    common = {"end": end, "threads": threads, "instruction_set": instruction_set}
    image = len(weight.shape) == 4
    if not image and len(weight.shape) != 2:
        raise UsageError(f"a weight of shape {weight.shape}: expected a linear layer's or a 2-d convolution's")
    if isinstance(weight, PackedSigns):
        return BinaryConv(weight, window, **common) if image else BinaryLinear(weight, **common)  # type: ignore[arg-type]
    if weight.scale is None:
        return Conv(weight, window, **common) if image else Linear(weight, **common)  # type: ignore[arg-type]
    if grid is None:
        raise UsageError("8-bit weights need the grid of their input")
    if image:
        return Int8Conv(weight, grid, None, window, **common)  # type: ignore[arg-type]
    return Int8Linear(weight, grid, None, **common)  # type: ignore[arg-type]
