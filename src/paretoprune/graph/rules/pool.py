"""Pooling and resampling: channels pass, spatial positions are frozen."""

from __future__ import annotations

from typing import Any

from paretoprune.graph.op import DeadView, Dims, Op, State


def _spatial_rank(op: Op) -> int:
    digits = [c for c in str(op.node.target).split(".")[1] if c.isdigit()]
    return int(digits[0])


def _source(op: Op) -> Any:
    return op.args["self"] if "self" in op.args else op.args["input"]


def pool(op: Op) -> Dims:
    rank = _spatial_rank(op)
    dims = op.dims_of(_source(op))
    kept = len(dims) - rank
    op.freeze(dims[kept:], "its positions are spatial")
    shape = op.out_shape[0] if isinstance(op.out_shape, list) else op.out_shape
    return (*dims[:kept], *(op.closed(s, "its positions are spatial") for s in shape[kept:]))


def pool_with_indices(op: Op) -> list[Dims]:
    dims = pool(op)
    return [dims for _ in op.out_shape]


def pool_dead(view: DeadView) -> State:
    return view.join([_source(view.op)])


INDEXED = ("with_indices", "adaptive_max_pool", "fractional_max_pool")
"""Operators whose second output counts places: at a removed channel it is a number that nothing knows."""


def unpool(op: Op) -> Dims:
    """max_unpool: values go to the places that the indices name, channel by channel."""
    values, places = op.dims_of(op.args["self"]), op.dims_of(op.args["indices"])
    rank = _spatial_rank(op)
    for a, b in zip(values[:-rank], places[:-rank], strict=True):
        op.unify(a, b)
    op.freeze((*values[-rank:], *places[-rank:]), "its positions are spatial")
    return (*values[:-rank], *(op.closed(s, "its positions are spatial") for s in op.out_shape[-rank:]))


def unpool_dead(view: DeadView) -> State:
    """Zeros wherever nothing is put."""
    return view.join([view.op.args["self"]])


def random_pool(op: Op) -> list[Dims]:
    """fractional_max_pool: the places come from random numbers per channel."""
    samples = op.dims_of(op.args["random_samples"])
    op.freeze(samples, "random numbers are drawn for each of its positions")
    dims = pool(op)
    kept = len(dims) - _spatial_rank(op)
    for a, b in zip(dims[:kept], samples[:kept], strict=False):
        op.unify(a, b)
    return [dims for _ in op.out_shape]


def sample(op: Op) -> Dims:
    """grid_sample: (b, c, space) read at (b, space', coordinates)."""
    x, grid = op.dims_of(op.args["input"]), op.dims_of(op.args["grid"])
    op.unify(x[0], grid[0])
    op.freeze((*x[2:], *grid[1:]), "its positions are spatial")
    return (*x[:2], *(op.closed(s, "its positions are spatial") for s in op.out_shape[2:]))


def sample_dead(view: DeadView) -> State:
    return view.join([view.op.args["input"]])


def coordinates(op: Op) -> Dims:
    """affine_grid: (b, rows, columns) of a transformation become coordinates."""
    op.freeze(op.dims_of(op.args["theta"])[1:], "it holds coordinates")
    rest = (op.closed(s, f"its positions are spatial at {op.where}") for s in op.out_shape[1:])
    return (op.dims_of(op.args["theta"])[0], *rest)
