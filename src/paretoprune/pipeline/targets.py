"""Targets, with what other rooms do for those whose files hold graphs of our own or packed weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from paretoprune import graph as graphs
from paretoprune import targets
from paretoprune.core.graph import Example
from paretoprune.core.protocols import Runner, Target
from paretoprune.sparsity import kernels
from paretoprune.sparsity.kernels.making import kernel_of
from paretoprune.sparsity.parts import SIGNS, weight_of_parts
from paretoprune.targets.sparse_cpu import Kernel, LayerParts


class GraphFiles:
    """Implements targets.graph_file.Graphs."""

    reopen = f"{__name__}:loader"

    def dump(self, module: nn.Module, example: Example) -> tuple[dict[str, Any], dict[str, torch.Tensor], Example]:
        graph, ordered = graphs.flat(module, example)
        return graphs.dump(graph), graphs.tensors_of(graph), ordered

    def load(self, graph: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        return graphs.load(graph, tensors, {})


class Packing:
    """Implements targets.sparse_cpu.Packing."""

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

    def pack(
        self,
        module: nn.Module,
        example: Example,
        sample: Example,
        precision: str,
        calibration: Iterable[Any] | None,
        rival: Callable[[Any], Callable[[], Any]],
        threads: int,
    ) -> nn.Module:
        from paretoprune.pipeline.packed import pack

        return pack(
            *(module, example),
            sample=sample,
            precision=precision,
            calibration=calibration,
            rival=rival,
            threads=threads,
        )


def _stored(parts: LayerParts) -> tuple[Any, ...]:
    value = parts.value.view(np.uint32) if parts.pattern == SIGNS else parts.value
    return parts.pattern, parts.coding, parts.shape, value, parts.at, parts.scale


def find_target(given: str | Target, threads: int = 1) -> Target:
    """See targets.find_target."""
    return targets.find_target(given, threads, GraphFiles(), Packing())


def loader(name: str, threads: int) -> Callable[[Path], Runner]:
    """How a fresh process loads a file of a target; what it needs is imported before this returns."""
    return find_target(name, threads).load
