"""Which node of a graph gives which tensor of a file: the one with the same values.

Names tell nothing: an exporter renames, and a file has fused what the graph has apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from paretoprune.core.graph import Example, placeholders

CLOSE = 1e-3
"""Largest difference over the tensor's spread; different tensors of one size are far from it."""


def matched(module: fx.GraphModule, inputs: Example, tensors: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """By tensor: the first node whose values are the same in the same order, whatever the shape; others are left out.

    `tensors` are what the file computes from `inputs`, of which no two samples should be alike.
    """
    reader = _Reader(module)
    with torch.no_grad():
        reader.run(*placeholders(module, inputs))
    return {
        name: node
        for name, value in tensors.items()
        if (node := next((n for n, given in reader.found if _same(given, value)), None)) is not None
    }


def _same(given: Tensor, value: NDArray[Any]) -> bool:
    if given.numel() != value.size or value.size < 2:
        return False
    ours = given.detach().cpu().numpy().reshape(-1)
    spread = float(np.ptp(value))
    return spread > 0 and float(np.abs(ours - value.reshape(-1)).max()) <= CLOSE * spread


class _Reader(fx.Interpreter):
    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.extra_traceback = False
        self.found: list[tuple[str, Tensor]] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and n.op not in ("get_attr", "output"):
            self.found.append((n.name, value))
        return value
