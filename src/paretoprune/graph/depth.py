"""What goes with a residual block: operators that nothing reads any more, then parameters and buffers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import fx

Skips = Mapping[fx.Node, fx.Node]
"""Dropped sum -> the operand that takes its place."""


def is_root(node: fx.Node) -> bool:
    """Does it stay even where nothing reads it: inputs, outputs, what may write somewhere?"""
    schema = getattr(node.target, "_schema", None)
    writes = node.op == "call_module" or (schema is not None and schema.is_mutable)
    return node.op in ("placeholder", "output") or writes


def dying(skips: Skips) -> set[fx.Node]:
    """Operators and reads of tensors that go when each sum is its skip; the sums themselves are among them."""
    dead: set[fx.Node] = set()

    def read(node: fx.Node) -> bool:
        """A dropped sum passes its skip on and reads nothing else."""
        return any(user not in dead and skips.get(user, node) is node for user in node.users)

    stack = [n for total, skip in skips.items() for n in total.all_input_nodes if n is not skip]
    while stack:
        node = stack.pop()
        if node in dead or is_root(node) or read(node):
            continue
        dead.add(node)
        stack.extend(node.all_input_nodes)
    return dead | set(skips)


def dying_tensors(
    tensors: Mapping[str, torch.Tensor], graph: fx.Graph, gone: Collection[fx.Node], keep: Collection[str] = ()
) -> frozenset[str]:
    """Names of parameters and buffers that only `gone` operators read, and of those beside them that nothing read.

    A counter of a batch norm, say, goes with its weights. A tensor of several names stays under all of them as long as
    one is read. `keep`: names that stay whatever reads them.
    """
    reads = [n for n in graph.nodes if n.op == "get_attr" and n.users and str(n.target) in tensors]
    before = {id(tensors[str(n.target)]) for n in reads}
    after = {id(tensors[str(n.target)]) for n in reads if n not in gone}
    lost = {n for n, t in tensors.items() if id(t) in before - after}
    owners = {_owner(n) for n in lost} - {_owner(n) for n, t in tensors.items() if id(t) in after} - {""}
    beside = {id(t) for n, t in tensors.items() if id(t) not in before and _owner(n) in owners}
    elsewhere = {id(t) for n, t in tensors.items() if _owner(n) not in owners}
    idle = {n for n, t in tensors.items() if id(t) in beside - elsewhere}
    return frozenset((lost | idle) - set(keep))


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def take_out(graph: fx.Graph, skips: Mapping[str, str], lost: Collection[str] = ()) -> None:
    """Put the skip in the place of each sum, by node name, and erase what nothing reads any more.

    `lost`: tensors that go; the graph may name one that it never read.
    """
    nodes = {n.name: n for n in graph.nodes}
    for total, skip in skips.items():
        while skip in skips:
            skip = skips[skip]
        node = nodes[total]
        node.replace_all_uses_with(nodes[skip], delete_user_cb=_unless({nodes[t] for t in skips}))
    stack = [nodes[total] for total in skips]
    while stack:
        node = stack.pop()
        if not node._erased and not node.users and not is_root(node):
            sources = node.all_input_nodes
            graph.erase_node(node)
            stack.extend(sources)
    for node in [n for n in graph.nodes if n.op == "get_attr" and not n.users and str(n.target) in lost]:
        graph.erase_node(node)


def _unless(sums: Collection[fx.Node]) -> Callable[[fx.Node], bool]:
    """Dropped sums may go on reading each other: they are erased."""
    return lambda user: user not in sums
