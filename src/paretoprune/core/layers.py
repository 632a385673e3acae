"""The shape of one layer: enough to count it, to build it alone and to time it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paretoprune.core.errors import UsageError

Kind = Literal["conv", "conv_transpose", "linear"]


@dataclass(frozen=True)
class LayerSpec:
    """One layer at batch 1.

    Convolutions of 1 to 3 dimensions: `kernel`, `stride`, `padding`, `dilation` and the input's `spatial` size have
    one entry per dimension. Linear layers see `rows` rows (1, or the number of tokens).
    """

    kind: Kind
    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    spatial: tuple[int, ...] = ()
    rows: int = 1
    zeros: str = ""
    """What its weight holds, as a plan says it ("16x1@0.8", core.sparsity); empty for a dense one."""

    def __post_init__(self) -> None:
        if self.kind not in ("conv", "conv_transpose", "linear"):
            raise UsageError(f"layer kind {self.kind!r} is not known; use 'conv', 'conv_transpose' or 'linear'")
        if self.kind != "linear":
            dims = len(self.kernel)
            object.__setattr__(self, "stride", self.stride or (1,) * dims)
            object.__setattr__(self, "padding", self.padding or (0,) * dims)
            object.__setattr__(self, "dilation", self.dilation or (1,) * dims)
            self._check_convolution(dims)
        if min(self.inputs, self.outputs, self.rows) < 1:
            raise UsageError(f"{self}: inputs, outputs and rows must be at least 1")

    def _check_convolution(self, dims: int) -> None:
        lengths = {len(t) for t in (self.kernel, self.stride, self.padding, self.dilation, self.spatial)}
        if lengths != {dims} or dims == 0:
            raise UsageError(f"{self}: kernel, stride, padding, dilation and spatial need one entry per dimension")
        if self.groups < 1 or self.inputs % self.groups or self.outputs % self.groups:
            raise UsageError(f"{self}: {self.groups} groups do not divide the inputs and outputs")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerSpec:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.rows, self.inputs) if self.kind == "linear" else (1, self.inputs, *self.spatial)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        if self.kind == "linear":
            return (self.outputs, self.inputs)
        if self.kind == "conv_transpose":
            return (self.inputs, self.outputs // self.groups, *self.kernel)
        return (self.outputs, self.inputs // self.groups, *self.kernel)

    def example(self) -> NDArray[np.float32]:
        return np.random.default_rng(0).standard_normal(self.input_shape).astype(np.float32)
