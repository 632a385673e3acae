"""Operators that write in place become ones that do not, where nothing else looks at the memory."""

from __future__ import annotations

import re

import torch
from torch import fx

_IN_PLACE = re.compile(r"^aten\.(\w+?)_\.(\w+)$")
_MAY_ALIAS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "type_as", "unbind", "split")
"""Operators that may return their input, or views of it, beside those whose schema says so."""


def functional(graph: fx.Graph) -> None:
    """relu_(x) becomes relu(x) with later uses of x redirected, where x is nobody's view and has none.

    Anything else that writes in place keeps its operator, for which there is no rule, so what it touches freezes.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        overload = _out_of_place(node)
        base = node.args[0] if overload is not None else None
        if not isinstance(base, fx.Node) or _aliased(base):
            continue
        node.target = overload
        later = {user for user in base.users if order[user] > order[node]}
        base.replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _out_of_place(node: fx.Node) -> torch._ops.OpOverload | None:
    match = _IN_PLACE.match(str(node.target)) if node.op == "call_function" else None
    packet = getattr(torch.ops.aten, match[1], None) if match else None
    found = getattr(packet, match[2], None) if match and packet is not None else None
    return found if isinstance(found, torch._ops.OpOverload) else None


def _aliased(base: fx.Node) -> bool:
    """Is the memory of this value also somebody else's? An input is the caller's, who wants it unchanged."""
    return base.op not in ("call_function", "placeholder") or _is_view(base) or any(_is_view(u) for u in base.users)


def _is_view(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return "getitem" in str(node.target)
    if _IN_PLACE.match(str(node.target)):
        return False
    shares = any(r.alias_info is not None for r in schema.returns)
    return shares or str(node.target).removeprefix("aten.").split(".")[0] in _MAY_ALIAS
