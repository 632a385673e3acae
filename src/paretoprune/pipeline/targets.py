"""Targets, with what other rooms do for those whose files hold graphs of our own or packed weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from paretoprune import graph as graphs
from paretoprune import targets
from paretoprune.core.errors import TargetError
from paretoprune.core.graph import Example
from paretoprune.core.layers import LayerSpec
from paretoprune.core.protocols import Runner, Target
from paretoprune.core.sparsity import Zeros
from paretoprune.sparsity import kernels, mask_of, matrix_of, pattern_of, weight_of
from paretoprune.sparsity.kernels.making import kernel_of
from paretoprune.sparsity.parts import SIGNS, weight_of_parts
from paretoprune.sparsity.storing import stored, stored_int8
from paretoprune.targets.sparse_cpu import HowToPack, Kernel, LayerParts


class GraphFiles:
    """Implements targets.graph_file.Graphs."""

    reopen = f"{__name__}:loader"

    def dump(self, module: nn.Module, example: Example) -> tuple[dict[str, Any], dict[str, torch.Tensor], Example]:
        graph, ordered = graphs.flat(module, example)
        return graphs.dump(graph), graphs.tensors_of(graph), ordered

    def load(self, graph: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        return graphs.load(graph, tensors, {})


class Packing:
    """Implements targets.sparse_cpu.Packing and targets.openvino_sparse.OpenVinoPacking."""

    reopen = f"{__name__}:loader"

    def instruction_set(self) -> str:
        return kernels.choose()

    def kernel(self, parts: LayerParts, threads: int) -> Kernel:
        weight = weight_of_parts(*_stored(parts))
        window = None
        if len(parts.shape) == 4:
            (down, across), (high, wide) = parts.stride, parts.padding
            window = kernels.Window((down, across), (high, wide, high, wide))
        grid = kernels.Grid(parts.grid[0], int(parts.grid[1])) if parts.grid else None
        return kernel_of(weight, kernels.End(parts.bias, parts.activation), window, grid, threads)  # type: ignore[arg-type]

    def sparse_layers(self, spec: LayerSpec, copies: int, precision: str, threads: int) -> list[Kernel]:
        rng, zeros = np.random.default_rng(0), Zeros.parse(spec.zeros)
        if spec.kind not in ("linear", "conv") or len(spec.kernel) not in (0, 2) or spec.groups > 1:
            raise TargetError(f"{spec}: the kernels take linear layers and 2-d convolutions without groups")
        if spec.kind == "conv" and set(spec.dilation) != {1}:
            raise TargetError(f"{spec}: the kernels take no dilated convolutions")
        window = None
        if spec.kind == "conv":
            window = kernels.Window((spec.stride[0], spec.stride[1]), (*spec.padding, *spec.padding))  # type: ignore[arg-type]
        found = []
        for _ in range(copies):
            weight = rng.standard_normal(spec.weight_shape).astype(np.float32)
            matrix = matrix_of(weight)
            weight = weight_of(matrix * mask_of(pattern_of(zeros.pattern), np.abs(matrix), zeros.share), weight.shape)
            packed = stored(weight) if precision == "fp32" else stored_int8(weight)
            grid = None if precision == "fp32" else kernels.Grid(0.05, 128)
            found.append(kernel_of(packed, None, window, grid, threads))
        return found  # type: ignore[return-value]

    def pack(self, module: nn.Module, example: Example, how: HowToPack) -> nn.Module:
        from paretoprune.pipeline.packed import packed_as

        return packed_as(module, example, how)

    def openvino_model(self, data: bytes, name: str, threads: int) -> Any:
        from paretoprune.sparsity.openvino_ops import read

        return read(data, name, threads)


def _stored(parts: LayerParts) -> tuple[Any, ...]:
    value = parts.value.view(np.uint32) if parts.pattern == SIGNS else parts.value
    return parts.pattern, parts.coding, parts.shape, value, parts.at, parts.scale


def find_target(given: str | Target, threads: int = 1) -> Target:
    """See targets.find_target."""
    return targets.find_target(given, threads, GraphFiles(), Packing())


def loader(name: str, threads: int) -> Callable[[Path], Runner]:
    """How a fresh process loads a file of a target; what it needs is imported before this returns."""
    return find_target(name, threads).load
