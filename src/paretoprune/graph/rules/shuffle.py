"""What moves positions between dims or along one: pixel and channel shuffles, patches, rolls, flips, triangles."""

from __future__ import annotations

from math import prod
from typing import Any

from paretoprune.graph.algebra import Expr, multiply
from paretoprune.graph.op import DeadView, Dims, Op, Resize, State


def _spatial(op: Op, sizes: Any) -> Dims:
    return tuple(op.closed(int(s), f"its positions are spatial at {op.where}") for s in sizes)


def _taps(op: Op, *sizes: int) -> list[Expr]:
    return [op.closed(int(s), f"its positions are those of a patch at {op.where}") for s in sizes]


def pixel_shuffle(op: Op) -> Dims:
    """(c·r·r, h, w) becomes (c, h·r, w·r)."""
    *outer, channels, _, _ = op.dims_of(op.args["self"])
    r = int(op.args["upscale_factor"])
    c = op.fresh(channels.size // (r * r))
    op.unify(channels, multiply(c, *_taps(op, r, r)))
    op.freeze(op.dims_of(op.args["self"])[-2:], "its positions are spatial")
    return (*outer, c, *_spatial(op, op.out_shape[-2:]))


def pixel_unshuffle(op: Op) -> Dims:
    """(c, h·r, w·r) becomes (c·r·r, h, w)."""
    *outer, channels, _, _ = op.dims_of(op.args["self"])
    r = int(op.args["downscale_factor"])
    op.freeze(op.dims_of(op.args["self"])[-2:], "its positions are spatial")
    return (*outer, multiply(channels, *_taps(op, r, r)), *_spatial(op, op.out_shape[-2:]))


def channel_shuffle(op: Op) -> Dims:
    """(g·c) becomes (c·g); groups and channels within a group may both be pruned."""
    x = op.dims_of(op.args["self"])
    g = op.fresh(int(op.args["groups"]))
    c = op.fresh(x[1].size // g.size)
    op.unify(x[1], multiply(g, c))
    op.memo.update(groups=g)
    return (x[0], multiply(c, g), *x[2:])


def channel_shuffle_resize(r: Resize) -> None:
    if r.changed(r.op.memo["groups"]):
        r.set(groups=r.width(r.op.memo["groups"]))


def im2col(op: Op) -> Dims:
    """F.unfold: (c, h, w) becomes (c·taps, places)."""
    *outer, channels, height, width = op.dims_of(op.args["self"])
    op.freeze((height, width), "its positions are spatial")
    return (*outer, multiply(channels, *_taps(op, *op.args["kernel_size"])), *_spatial(op, op.out_shape[-1:]))


def col2im(op: Op) -> Dims:
    """F.fold: (c·taps, places) becomes (c, h, w)."""
    *outer, rows, places = op.dims_of(op.args["self"])
    kernel = [int(k) for k in op.args["kernel_size"]]
    c = op.fresh(rows.size // prod(kernel))
    op.unify(rows, multiply(c, *_taps(op, *kernel)))
    op.freeze(places, "its positions are spatial")
    return (*outer, c, *_spatial(op, op.out_shape[-2:]))


def windows(op: Op) -> Dims:
    """Tensor.unfold: windows of a dim go last. Windows that tile it exactly only regroup its positions."""
    dims = list(op.dims_of(op.args["self"]))
    at, size, step = op.dim_index(op.args["dimension"], len(dims)), int(op.args["size"]), int(op.args["step"])
    count = op.out_shape[at]
    (window,) = _taps(op, size)
    if size == step and dims[at].size == count * size:
        outer = op.fresh(count)
        op.unify(dims[at], multiply(outer, window))
    else:
        op.freeze(dims[at], "windows slide over it")
        outer = op.closed(count, f"windows slide over it at {op.where}")
    dims[at] = outer
    return (*dims, window)


def moved(op: Op) -> Dims:
    """roll and flip: positions change places along the named dims (without names, along all)."""
    dims = list(op.dims_of(op.args["self"]))
    named = op.args["dims"]
    for at in {op.dim_index(d, len(dims)) for d in named} if named else range(len(dims)):
        op.freeze(dims[at], "its positions are moved along it")
    return tuple(dims)


def mirrored(op: Op) -> Dims:
    """fliplr takes the second dim, flipud the first."""
    dims = op.dims_of(op.args["self"])
    op.freeze(dims[1 if "fliplr" in str(op.node.target) else 0], "its positions are moved along it")
    return dims


def rot90(op: Op) -> Dims:
    dims = list(moved(op))
    i, j = (op.dim_index(d, len(dims)) for d in op.args["dims"])
    if int(op.args["k"]) % 2:
        dims[i], dims[j] = dims[j], dims[i]
    return tuple(dims)


def diagonal(op: Op) -> Dims:
    dims = op.dims_of(op.args["self"])
    pair = [op.dim_index(op.args[k], len(dims)) for k in ("dim1", "dim2")]
    op.freeze(tuple(dims[i] for i in pair), "a diagonal is read from it")
    rest = tuple(d for i, d in enumerate(dims) if i not in pair)
    return (*rest, op.closed(op.out_shape[-1], f"a diagonal is read from it at {op.where}"))


def difference(op: Op) -> Dims:
    """Neighbours are subtracted."""
    parts = [op.dims_of(t) for t in op.tensors()]
    at = op.dim_index(op.args["dim"], len(parts[0]))
    for part in parts:
        op.freeze(part[at], "its neighbours are subtracted")
        for i, (a, b) in enumerate(zip(parts[0], part, strict=True)):
            if i != at:
                op.unify(a, b)
    new = op.closed(op.out_shape[at], f"its neighbours are subtracted at {op.where}")
    return tuple(new if i == at else d for i, d in enumerate(parts[0]))


# -- halves ----------------------------------------------------------------------------------------------------------


def glu(op: Op) -> Dims:
    """[a + a] becomes a · σ(a) of the halves."""
    dims = op.dims_of(op.args["self"])
    at = op.dim_index(op.args["dim"], len(dims))
    halves = op.axes.cut(dims[at], dims[at].size // 2)
    if halves is None:
        op.freeze(dims[at], "its halves cannot be told apart")
        kept: Expr = op.closed(dims[at].size // 2, f"its halves cannot be told apart at {op.where}")
    else:
        op.unify(*halves)
        kept = halves[0]
    return tuple(kept if i == at else d for i, d in enumerate(dims))


def glu_dead(view: DeadView) -> State:
    """0 · σ(0) is zero."""
    return view.join([view.op.args["self"]])
