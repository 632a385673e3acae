"""Tensors born in the graph: fills whose value is the same everywhere may be made narrower."""

from __future__ import annotations

from paretoprune.graph.op import DeadView, Dims, Op, Resize, State


def fill(op: Op) -> Dims:
    """zeros, ones, full: every position is alike, so every dim is an axis that can shrink."""
    return tuple(op.fresh(s) for s in op.out_shape)


def fill_like(op: Op) -> Dims:
    return op.dims_of(op.args["self"])


def zero_dead(view: DeadView) -> State:
    return State.ZERO


def fill_resize(r: Resize) -> None:
    r.set(size=r.sizes(r.get("size"), r.op.out))


_RANDOM = "random numbers are drawn for each of its positions, in eval mode too"


def random(op: Op) -> Dims:
    """rand, randn, normal: other sizes would draw other numbers."""
    return tuple(op.closed(s, f"{_RANDOM} at {op.where}") for s in op.out_shape)


def random_like(op: Op) -> Dims:
    """rand_like, randn_like, bernoulli: one number for each position of an operand."""
    dims: Dims = ()
    for tensor in op.tensors():
        op.freeze(op.dims_of(tensor), _RANDOM)
        dims = op.dims_of(tensor) if len(op.dims_of(tensor)) >= len(dims) else dims
    return dims
