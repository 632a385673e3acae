"""Bodies of `torch.no_grad` and disabled `torch.autocast` regions, put where the region stands."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

_GRAD = "wrap_with_set_grad_enabled"
_AUTOCAST = "wrap_with_autocast"


def inline_regions(module: fx.GraphModule) -> None:
    """Replace every region by its operators, nested ones too.

    What leaves a region without gradients is detached, so that training goes on as in the user's network. A region
    with autocast switched on stays: there is no rule for it, and what it touches freezes.
    """
    work = True
    while work:
        work = False
        for node in list(module.graph.nodes):
            if (found := _region(module, node)) is not None:
                _inline(module.graph, node, *found)
                work = True
    module.graph.lint()


def _region(module: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, tuple[Any, ...], bool] | None:
    """(body, its operands, whether gradients stop) of a region that can be inlined."""
    name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    if name == _GRAD:
        stops, body, operands = node.args[0] is False, node.args[1], node.args[2:]
    elif name == _AUTOCAST and node.args[2] is False:
        stops, body, operands = False, node.args[4], node.args[5:]
    else:
        return None
    inner = getattr(module, str(body.target), None) if isinstance(body, fx.Node) and body.op == "get_attr" else None
    return (inner, operands, stops) if isinstance(inner, fx.GraphModule) else None


def _inline(graph: fx.Graph, node: fx.Node, body: fx.GraphModule, operands: tuple[Any, ...], stops: bool) -> None:
    owner = graph.owning_module
    mapping: dict[fx.Node, Any] = dict(
        zip((n for n in body.graph.nodes if n.op == "placeholder"), operands, strict=True)
    )
    outputs: Any = ()
    with graph.inserting_before(node):
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                continue
            if inner.op == "output":
                outputs = fx.map_arg(inner.args[0], mapping.__getitem__)
            elif inner.op == "get_attr":
                mapping[inner] = _constant(graph, owner, body, inner)
            else:
                mapping[inner] = graph.node_copy(inner, mapping.__getitem__)
        outputs = [_stopped(graph, value) if stops else value for value in outputs]
    for user in list(node.users):
        if user.target is not operator.getitem:
            raise NotImplementedError(f"a region's outputs are read by {user.target}")
        user.replace_all_uses_with(outputs[user.args[1]])
        graph.erase_node(user)
    held = [n for n in node.all_input_nodes if n.op == "get_attr"]
    graph.erase_node(node)
    for unused in (n for n in held if not n.users):
        graph.erase_node(unused)


def _constant(graph: fx.Graph, owner: Any, body: fx.GraphModule, inner: fx.Node) -> fx.Node:
    """An attribute of the body under a name of its own in the outer module."""
    value: Any = body
    for part in str(inner.target).split("."):
        value = getattr(value, part)
    name, k = f"region_{str(inner.target).replace('.', '_')}", 2
    while hasattr(owner, name):
        name, k = f"region_{str(inner.target).replace('.', '_')}_{k}", k + 1
    if isinstance(value, torch.Tensor):
        owner.register_buffer(name, value)
    else:
        setattr(owner, name, value)
    new = graph.get_attr(name)
    new.meta = dict(inner.meta)
    return new


def _stopped(graph: fx.Graph, value: Any) -> Any:
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return value
    new = graph.call_function(torch.ops.aten.detach.default, (value,))
    new.meta = dict(value.meta)
    return new
