"""Targets, with what the graph room does for those whose files hold graphs of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paretoprune import graph as graphs
from paretoprune import targets
from paretoprune.core.graph import Example
from paretoprune.core.protocols import Runner, Target


class GraphFiles:
    """Implements targets.graph_file.Graphs."""

    reopen = f"{__name__}:loader"

    def dump(self, module: nn.Module, example: Example) -> tuple[dict[str, Any], dict[str, torch.Tensor], Example]:
        graph, ordered = graphs.flat(module, example)
        return graphs.dump(graph), graphs.tensors_of(graph), ordered

    def load(self, graph: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        return graphs.load(graph, tensors, {})


def find_target(given: str | Target, threads: int = 1) -> Target:
    """See targets.find_target."""
    return targets.find_target(given, threads, GraphFiles())


def loader(name: str, threads: int) -> Callable[[Path], Runner]:
    """How a fresh process loads a file of a target; what it needs is imported before this returns."""
    return find_target(name, threads).load
