"""Kernels for packed weights, and the layers that call them. Imports neither torch nor a runtime."""

from __future__ import annotations

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
from paretoprune.sparsity.kernels.library import SETS, available, built, choose

__all__ = [
    "Linear",
    "Conv",
    "Int8Linear",
    "Int8Conv",
    "BinaryLinear",
    "BinaryConv",
    "End",
    "Window",
    "Grid",
    "SETS",
    "available",
    "built",
    "choose",
]
