"""The grid of numbers that a quantized tensor may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Grid:
    """(whole - zero_point) · scale, for whole numbers from `low` to `high`.

    `name`: tensors whose grids share a name share the grid. `axis`: along which `scale` (channels,) runs; None for one
    scale of all.
    """

    name: str
    scale: NDArray[np.float32]
    zero_point: int
    low: int
    high: int
    axis: int | None = None


@dataclass(frozen=True)
class Layout:
    """What a file quantizes: activations by name of the tensor in the fp32 file, weights by name of the parameter.

    `biases`: those that are whole numbers of the input's scale times the weight's; by parameter, the name of the
    input's grid and that of the weight.
    """

    activations: Mapping[str, Grid]
    weights: Mapping[str, Grid]
    biases: Mapping[str, tuple[str, str]] = field(default_factory=dict)
