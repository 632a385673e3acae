"""Sums, means and maxima over dims, and what mixes an axis in a way that cannot be pruned."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import fx

from paretoprune.graph.algebra import UNIT, Expr
from paretoprune.graph.op import DeadView, Dims, Op, Resize, State


def _dims(op: Op) -> list[int]:
    rank = len(op.dims_of(op.args["self"]))
    named = op.args.get("dim")
    if named is None or named == []:
        return list(range(rank))
    return [op.dim_index(d, rank) for d in ([named] if isinstance(named, int) else named)]


def reduce(op: Op) -> Dims:
    dims, gone = op.dims_of(op.args["self"]), _dims(op)
    if op.args.get("keepdim"):
        return tuple(UNIT if i in gone else d for i, d in enumerate(dims))
    return tuple(d for i, d in enumerate(dims) if i not in gone)


def reduced(op: Op) -> list[Expr]:
    dims = op.dims_of(op.args["self"])
    return [dims[i] for i in _dims(op)]


def freezing_reduce(op: Op) -> Dims:
    """Products, deviations and norms: no value at a removed position would be neutral."""
    op.freeze(reduced(op), "it is reduced in a way that no removed position is neutral to")
    return reduce(op)


def freezing_reduce_pair(op: Op) -> list[Dims]:
    result = freezing_reduce(op)
    return [result for _ in op.out_shape]


def softmax(op: Op) -> Dims:
    op.freeze(reduced(op), "its positions compete in a softmax")
    return op.dims_of(op.args["self"])


def sum_dead(view: DeadView) -> State:
    x = view.op.args["self"]
    view.need_zero(x, reduced(view.op), "it is summed up and what is removed is not zero there")
    return view.join([x])


def maximum_dead(view: DeadView) -> State:
    """Zeros in place of removed values could win the maximum."""
    x = view.op.args["self"]
    if any(view.contains(e) for e in reduced(view.op)):
        return view.refuse("a maximum is taken over it")
    return view.join([x])


def mean_resize(r: Resize) -> None:
    """The divisor stays what it was: mean over unchanged dims, then sum over changed ones × 1 / old size."""
    dims, exprs = _dims(r.op), reduced(r.op)
    changed = [d for d, e in zip(dims, exprs, strict=True) if r.changed(e)]
    if not changed:
        return
    same = [d for d in dims if d not in changed]
    x: Any = r.node.args[0]
    keep, graph = bool(r.op.args.get("keepdim")), r.node.graph
    kind = {} if r.op.args.get("dtype") is None else {"dtype": r.op.args["dtype"]}
    old = prod(e.size for d, e in zip(dims, exprs, strict=True) if d in changed)
    with graph.inserting_before(r.node):
        if same:
            x = graph.call_function(torch.ops.aten.mean.dim, (x, same, True), kind)
        total = graph.call_function(torch.ops.aten.sum.dim_IntList, (x, changed, bool(same) or keep), kind)
        if same and not keep:
            total = graph.call_function(torch.ops.aten.squeeze.dims, (total, dims))
        new: fx.Node = graph.call_function(torch.ops.aten.mul.Tensor, (total, 1.0 / old))
    new.meta = dict(r.node.meta)
    r.node.replace_all_uses_with(new)
    graph.erase_node(r.node)
    r.node = new
