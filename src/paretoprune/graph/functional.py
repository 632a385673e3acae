"""Operators that write in place become ones that do not, where nothing else looks at the memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import torch
from torch import fx

from paretoprune.graph.op import bind
from paretoprune.graph.opaque import leaf

_IN_PLACE = re.compile(r"^aten\.(\w+?)_\.(\w+)$")
_MAY_ALIAS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "type_as", "unbind", "split")
"""Operators that may return their input, or views of it, beside those whose schema says so."""


def functional(graph: fx.Graph) -> None:
    """relu_(x) becomes relu(x) with later uses of x redirected, where x is nobody's view and has none.

    Anything else that writes in place keeps its operator, for which there is no rule, so what it touches freezes.
    """
    _drop_whole_slices(graph)
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        overload = _out_of_place(node)
        base = node.args[0] if overload is not None else None
        if not isinstance(base, fx.Node) or _aliased(base, [u for u in base.users if order[u] < order[node]]):
            continue
        node.target = overload
        later = {user for user in base.users if order[user] > order[node]}
        base.replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _drop_whole_slices(graph: fx.Graph) -> None:
    """x[:, :, i] = y writes into the view x[:], which is x."""
    for node in list(graph.nodes):
        if node.op != "call_function" or str(node.target) != "aten.slice.Tensor":
            continue
        given = bind(node)
        if given["start"] in (None, 0) and given["end"] in (None, sys.maxsize) and given["step"] == 1:
            node.replace_all_uses_with(given["self"])
            graph.erase_node(node)


def _out_of_place(node: fx.Node) -> torch._ops.OpOverload | None:
    match = _IN_PLACE.match(str(node.target)) if node.op == "call_function" else None
    packet = getattr(torch.ops.aten, match[1], None) if match else None
    found = getattr(packet, match[2], None) if match and packet is not None else None
    return found if isinstance(found, torch._ops.OpOverload) else None


def _aliased(base: fx.Node, earlier: list[fx.Node]) -> bool:
    """Is the memory of this value also somebody else's? An input is the caller's, who wants it unchanged.

    `earlier`: who read it before it is written. A view that is taken afterwards is one of the new value.
    """
    elsewhere = base.op not in ("call_function", "placeholder") or _is_view(base) or _writes_in_place(base)
    return elsewhere or any(_is_view(u) for u in earlier)


def _writes_in_place(node: fx.Node) -> bool:
    return _IN_PLACE.match(str(node.target)) is not None


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_module" or node.target is leaf:
        return True
    if node.op != "call_function":
        return False
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        source = node.args[0] if "getitem" in str(node.target) else None
        return isinstance(source, fx.Node) and (_is_view(source) or _read_twice(source, node))
    if _writes_in_place(node):
        return False
    shares = any(r.alias_info is not None for r in schema.returns)
    return shares or str(node.target).removeprefix("aten.").split(".")[0] in _MAY_ALIAS


def _read_twice(source: fx.Node, node: fx.Node) -> bool:
    """Is the same one of several outputs also taken elsewhere?"""
    return any(user is not node and user.args == node.args for user in source.users)


def written(graph: fx.Graph) -> set[str]:
    """Attributes that the graph itself writes into, directly or through a view: their values must last."""
    return {str(base.target) for n in written_values(graph) for base in _under(n) if base.op == "get_attr"}


def written_values(graph: fx.Graph) -> list[fx.Node]:
    """Values that some operator writes into."""
    found: list[fx.Node] = []
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
            continue
        given, arguments = bind(node), node.target._schema.arguments
        into = [given[a.name] for a in arguments if a.alias_info is not None and a.alias_info.is_write]
        found += [n for v in into for n in (v if isinstance(v, (list, tuple)) else [v]) if isinstance(n, fx.Node)]
    return found


def memory_of(node: fx.Node) -> set[fx.Node]:
    """The value itself and every one that it may be a view of, or that an operator wrote into to make it."""
    return set(_under(node))


def _under(node: fx.Node) -> Iterator[fx.Node]:
    stack, seen = [node], {node}
    while stack:
        top = stack.pop()
        yield top
        for source in top.all_input_nodes if _is_view(top) or _writes_in_place(top) else ():
            if source not in seen:
                seen.add(source)
                stack.append(source)
