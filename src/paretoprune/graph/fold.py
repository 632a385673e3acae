"""Subgraphs without inputs: what counts positions is computed once, so that it can be cut by index.

A shorter `arange` is another sequence, but a constant that was made from one (ALiBi slopes per head, a rotary table)
may lose entries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

MAX_ELEMENTS = 1 << 24
"""Larger results stay as they are: 64 MB of single precision for one constant is enough."""

_COUNTING = (
    "arange",
    "linspace",
    "logspace",
    "eye",
    "tril_indices",
    "triu_indices",
    "lift_fresh_copy",
    "scalar_tensor",
)
_MAKING = (*_COUNTING, "full", "zeros", "ones")
PREFIX = "folded_constant_"


def fold_constants(module: fx.GraphModule) -> None:
    """Replace every tensor that depends on no input, parameter or buffer by a buffer that holds its value.

    Fills whose positions are all alike stay operators: they are born at any width. Named buffers are never folded,
    for a user may load other values into them.
    """
    graph = module.graph
    values: dict[fx.Node, Any] = {}
    counted: set[fx.Node] = set()
    for node in graph.nodes:
        if _constant(node, values, module):
            values[node] = _value(node, values, module)
            if _name(node) in _COUNTING or node.op == "get_attr" or any(n in counted for n in node.all_input_nodes):
                counted.add(node)
    for node in list(graph.nodes):
        if node in counted and node.op != "get_attr" and any(user not in values for user in node.users):
            _replace(module, node, values[node])
    graph.eliminate_dead_code(lambda n: n not in values)
    graph.lint()


def _name(node: fx.Node) -> str:
    parts = str(node.target).split(".")
    return parts[1] if node.op == "call_function" and parts[0] == "aten" else ""


def _constant(node: fx.Node, values: dict[fx.Node, Any], module: fx.GraphModule) -> bool:
    if node.op == "get_attr":
        return str(node.target).startswith(("lifted_tensor_", "_tensor_constant", "region_")) and isinstance(
            getattr(module, str(node.target), None), torch.Tensor
        )
    if not _name(node) or not isinstance(node.target, torch._ops.OpOverload):
        return False
    inputs = node.all_input_nodes
    if not inputs and _name(node) not in _MAKING:
        return False
    tags, schema = node.target.tags, node.target._schema
    changing = schema.is_mutable or torch.Tag.nondeterministic_seeded in tags
    value = node.meta.get("val")
    static = isinstance(value, torch.Tensor) and all(isinstance(s, int) for s in value.shape)
    small = static and value is not None and value.numel() <= MAX_ELEMENTS
    return small and not changing and all(n in values for n in inputs)


def _value(node: fx.Node, values: dict[fx.Node, Any], module: fx.GraphModule) -> Any:
    if node.op == "get_attr":
        return getattr(module, str(node.target))
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _replace(module: fx.GraphModule, node: fx.Node, value: torch.Tensor) -> None:
    name = f"{PREFIX}{sum(1 for n, _ in module.named_buffers(recurse=False) if n.startswith(PREFIX))}"
    module.register_buffer(name, value.detach().clone())
    with module.graph.inserting_before(node):
        new = module.graph.get_attr(name)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
