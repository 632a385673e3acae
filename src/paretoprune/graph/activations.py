"""Cheaper activations in a captured network: SiLU, GELU, Mish, ELU … become ReLU or hard-swish.

ReLU is one comparison and folds into the layer before it on most runtimes; hard-swish is SiLU in straight pieces
(Howard et al. 2019, "Searching for MobileNetV3", sec. 5.2). The network does not compute the same any more: recovery
follows. The result is analysed anew, since what stands at removed positions may be another value than before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import fx, nn

from paretoprune.core.errors import FileError, PlanError
from paretoprune.graph.inference import paths_of
from paretoprune.graph.model import shared_storage
from paretoprune.graph.traced import TracedGraph, analyse

Swaps = tuple[tuple[str, str], ...]
"""(path of a module, name of an activation) …"""

_SMOOTH = ("silu", "gelu", "mish", "elu", "celu", "selu")
REPLACES: Mapping[str, tuple[str, ...]] = {
    "relu": (*_SMOOTH, "hardswish", "leaky_relu", "softplus"),
    "hardswish": _SMOOTH,
    "hardsigmoid": ("sigmoid",),
    "hardtanh": ("tanh",),
}
"""The cheaper one, and the ATen operators in whose place it may stand."""

_KNOWN = frozenset(source for sources in REPLACES.values() for source in sources)

MODULES: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "hardtanh": nn.Hardtanh,
}
_OPERATORS: Mapping[str, Any] = {name: getattr(torch.ops.aten, name).default for name in REPLACES}


def activated(graph: TracedGraph, wanted: Mapping[str, str]) -> TracedGraph:
    """The graph with these activations replaced, by name or pattern of a node or of the module that it stands in.

    The first pattern that fits a node counts; of a pattern, activations that it is not cheaper than stay as they are.
    Names of nodes and weights stay. The graph itself where nothing is wanted. Raises PlanError.
    """
    if not wanted:
        return graph
    key = tuple(wanted.items())
    if key not in graph.variants:
        graph.variants[key] = _made(graph, replaced(graph, wanted))
    return graph.variants[key]


def replaced(graph: TracedGraph, wanted: Mapping[str, str]) -> dict[str, str]:
    """Node -> the activation that takes its place. Raises PlanError for an unknown one and a pattern without effect."""
    for pattern, name in wanted.items():
        if name not in REPLACES:
            raise PlanError(f"activations: {name!r} for '{pattern}' is not offered; give one of {', '.join(REPLACES)}")
    found: dict[str, str] = {}
    used = set[str]()
    for node in graph.captured.graph.nodes:
        kind = kind_of(node)
        fits = next((p for p in wanted if kind and _named(node, p)), None)
        if fits is not None and kind in REPLACES[wanted[fits]]:
            found[node.name] = wanted[fits]
            used.add(fits)
    for pattern, name in wanted.items():
        if pattern not in used:
            raise PlanError(
                f"activations: '{pattern}' names none that {name} is cheaper than ({', '.join(REPLACES[name])}); "
                f"this network has {_listed(graph)}"
            )
    return found


def kind_of(node: fx.Node) -> str:
    """ "silu" for aten.silu.default, if it is an activation that has a cheaper one; else empty."""
    name = str(node.target).split(".")[1] if node.op == "call_function" and str(node.target).count(".") == 2 else ""
    return name if name in _KNOWN and str(node.target) == f"aten.{name}.default" else ""


def _named(node: fx.Node, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in (node.name, *paths_of(node)[-1:]))


def _listed(graph: TracedGraph) -> str:
    found = [
        f"'{node.name}' ({kind}{f' in {paths[-1]}' if (paths := paths_of(node)) and paths[-1] else ''})"
        for node in graph.captured.graph.nodes
        if (kind := kind_of(node))
    ]
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return f"{', '.join(found[:8])}{more}" if found else "none that has a cheaper one"


def _made(graph: TracedGraph, swaps: Mapping[str, str]) -> TracedGraph:
    new = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    new.output(new.graph_copy(graph.captured.graph, mapping))
    new._codegen = graph.captured.graph._codegen
    for old, node in mapping.items():
        node.name, node.meta = old.name, dict(old.meta)
        if old.name in swaps:
            given = node.kwargs.get("self", node.args[0] if node.args else None)
            node.target, node.args, node.kwargs = _OPERATORS[swaps[old.name]], (given,), {}
    captured = fx.GraphModule(graph.captured, new)
    made = analyse(captured, graph.example, frozen=shared_storage(graph.captured))
    return replace(made, fingerprint=graph.fingerprint, notes=graph.notes)


# -- the user's own class ----------------------------------------------------------------------------------------------


def modules_of(model: nn.Module, program: fx.Graph, swaps: Mapping[str, str]) -> tuple[Swaps, str]:
    """(paths of modules with the activations that take their places, ""), or ((), why the class cannot have them).

    `program`: the rewritten graph. Whether the exchange is right is for a comparison to decide.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, str] = {}
    for node in program.nodes:
        if (name := swaps.get(node.name)) is None:
            continue
        path = next(iter(paths_of(node)[-1:]), "")
        module = modules.get(path)
        if not path or module is None or not _bare(module):
            where = f"the forward of '{path}'" if path else f"the forward of {type(model).__name__}"
            return (), f"{where} calls an activation that was replaced as a function, and not as a module of its own"
        if found.setdefault(path, name) != name:
            return (), f"'{path}' is called several times, and was replaced by different activations"
    return tuple(found.items()), ""


def put_activations(model: nn.Module, swaps: Iterable[tuple[str, str]]) -> None:
    """Change `model` in place, wherever the module is held. Raises FileError for what is no activation's module."""
    for path, name in swaps:
        old = dict(model.named_modules(remove_duplicate=False)).get(path)
        if not path or old is None or not _bare(old) or name not in MODULES:
            raise FileError(f"{type(model).__name__} has no module '{path}' in whose place {name!r} may stand")
        new = MODULES[name]().train(old.training)
        for owner in list(model.modules()):
            for leaf, child in owner._modules.items():
                if child is old:
                    owner._modules[leaf] = new


def _bare(module: nn.Module) -> bool:
    """Nothing is inside: no layer, parameter or buffer."""
    return not (module._modules or module._parameters or module._buffers)
