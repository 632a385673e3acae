"""Pooling and resampling: channels pass, spatial positions are frozen."""

from __future__ import annotations

from typing import Any

from paretoprune.graph.op import DeadView, Dims, Op, State


def _spatial_rank(op: Op) -> int:
    digits = [c for c in str(op.node.target).split(".")[1] if c.isdigit()]
    return int(digits[0])


def pool(op: Op) -> Dims:
    x = op.args["self"] if "self" in op.args else op.args["input"]
    rank = _spatial_rank(op)
    dims = op.dims_of(x)
    kept = len(dims) - rank
    op.freeze(dims[kept:], "its positions are spatial")
    shape = op.out_shape[0] if isinstance(op.out_shape, list) else op.out_shape
    return (*dims[:kept], *(op.closed(s, "its positions are spatial") for s in shape[kept:]))


def pool_with_indices(op: Op) -> list[Dims]:
    dims = pool(op)
    return [dims for _ in op.out_shape]


def pool_dead(view: DeadView) -> State:
    x: Any = view.op.args["self"] if "self" in view.op.args else view.op.args["input"]
    return view.join([x])
