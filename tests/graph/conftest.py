"""Small networks from a function, and an oracle that shares no code with surgery's own self-check."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from paretoprune import graph as graphs
from paretoprune.core.graph import Example
from paretoprune.core.plan import Plan
from paretoprune.graph import TracedGraph


class Net(nn.Module):
    """`forward` is a function of the module and its inputs; keyword arguments are layers, parameters or buffers."""

    def __init__(self, forward: Callable[..., Any], **parts: Any):
        super().__init__()
        self._function = forward
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(self, *args, **kwargs)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and floating buffer gets values that show, variances positive ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.5
                tensor.copy_(noise.abs() + 0.5 if "var" in name else noise)
    return model.eval()


def double(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def zeroed(model: nn.Module, graph: TracedGraph, plan: Plan) -> nn.Module:
    """The user's network in double precision, with every removed entry of its parameters and buffers zero."""
    dead = copy.deepcopy(model).double()
    tensors = {**dict(dead.named_parameters()), **dict(dead.named_buffers())}
    for axis in graph.axes:
        removed = sorted(set(range(axis.size)) - set(plan.kept.get(axis.id, range(axis.size))))
        for member in axis.members if removed else ():
            if member.name in tensors:
                index = torch.from_numpy(member.entries[removed].reshape(-1))
                with torch.no_grad():
                    tensors[member.name].index_fill_(member.dim, index, 0)
    return dead


def leaves(output: Any) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]


def prunable(graph: TracedGraph) -> dict[str, int]:
    return {a.id: a.size for a in graph.axes if a.prunable}


def why(graph: TracedGraph, name: str, dim: int) -> str:
    """Why the axes in one dim of a parameter are frozen, all reasons joined."""
    return "; ".join(a.why for a in graph.axes if any(m.name == name and m.dim == dim for m in a.members))


def plans(graph: TracedGraph, seed: int = 0, least: int = 1) -> Iterator[Plan]:
    """Every prunable axis alone, to a random half and to `least` positions; then all at once."""
    rng = np.random.default_rng(seed)
    halves = {}
    for axis in graph.axes:
        if axis.prunable:
            halves[axis.id] = tuple(sorted(rng.choice(axis.size, max(axis.size // 2, 1), replace=False).tolist()))
            yield Plan({axis.id: halves[axis.id]})
            yield Plan({axis.id: tuple(sorted(rng.choice(axis.size, least, replace=False).tolist()))})
    yield Plan(halves)


def prove(model: nn.Module, example: Any, *, eager: bool = True, least: int = 1, **trace: Any) -> TracedGraph:
    """Trace, then compare every plan with the self-check and, if `eager`, with the zeroed network itself.

    `eager` must be off where a normalisation over channels takes its statistics over kept positions only.
    """
    randomise(model)
    graph = graphs.trace(model, example, **trace)
    inputs = Example.of(example)
    given = [[double(torch.randn(3, *v.shape[1:])) for v in vs] for vs in (inputs.args, inputs.kwargs.values())]
    kwargs = dict(zip(inputs.kwargs, given[1], strict=True))
    for plan in plans(graph, least=least):
        graphs.check(graph, plan)
        tensors = {n: double(t.detach()) for n, t in graphs.tensors_of(graph.captured).items()}
        pruned = graphs.cut(graph, plan, tensors).program.module
        with torch.no_grad():
            got = leaves(pruned(*given[0], **kwargs))
            want = leaves(zeroed(model, graph, plan)(*given[0], **kwargs)) if eager else []
        for g, w in zip(got, want, strict=False):
            scale = float(w.abs().max()) + 1e-12
            assert float((g - w).abs().max()) <= 1e-9 * scale, f"{plan.kept} differs from the zeroed network"
    return graph


class Tools:
    """What the tests of this folder share."""

    Net = Net
    randomise = staticmethod(randomise)
    zeroed = staticmethod(zeroed)
    prunable = staticmethod(prunable)
    plans = staticmethod(plans)
    prove = staticmethod(prove)
    why = staticmethod(why)
    leaves = staticmethod(leaves)


@pytest.fixture(scope="session")
def tools() -> type[Tools]:
    return Tools
