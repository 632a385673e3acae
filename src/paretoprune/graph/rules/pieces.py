"""Concatenation and its inverses: cat, stack, split, chunk, slice, select, unbind, padding."""

from __future__ import annotations

import sys
from typing import Any

import torch

from paretoprune.graph.algebra import Expr, Sum, concatenate, multiply
from paretoprune.graph.op import DeadView, Dims, Op, Resize, State
from paretoprune.graph.rules.pool import INDEXED

NOTHING = Sum((), 0)


def cat(op: Op) -> Dims:
    operands = [op.dims_of(t) for t in op.args["tensors"] if op.shape_of(t) != (0,)]
    at = op.dim_index(op.args["dim"], len(operands[0]))
    for other in operands[1:]:
        for i, (a, b) in enumerate(zip(operands[0], other, strict=True)):
            if i != at:
                op.unify(a, b)
    return tuple(concatenate(*(o[i] for o in operands)) if i == at else d for i, d in enumerate(operands[0]))


def stack(op: Op) -> Dims:
    operands = [op.dims_of(t) for t in op.args["tensors"]]
    for other in operands[1:]:
        for a, b in zip(operands[0], other, strict=True):
            op.unify(a, b)
    dims = list(operands[0])
    at = int(op.args["dim"]) % (len(dims) + 1)
    dims.insert(at, op.closed(len(operands), "it counts stacked tensors"))
    return tuple(dims)


def _pieces(op: Op, expr: Expr, sizes: list[int]) -> list[Expr] | None:
    """`expr` cut into segments of `sizes`."""
    pieces: list[Expr] = []
    for size in sizes[:-1]:
        halves = op.axes.cut(expr, size)
        if halves is None:
            return None
        pieces.append(halves[0])
        expr = halves[1]
    return [*pieces, expr]


def split(op: Op) -> list[Dims]:
    """split, split_with_sizes, chunk and tensor_split, from the sizes of the outputs."""
    dims = op.dims_of(op.args["self"])
    at = _split_dim(op, len(dims))
    sizes = [shape[at] for shape in op.out_shape]
    pieces = _pieces(op, dims[at], sizes)
    if pieces is None:
        op.freeze(dims[at], "a split cuts across it")
        pieces = [op.closed(s, f"a split cuts across it at {op.where}") for s in sizes]
    op.memo.update({str(i): p for i, p in enumerate(pieces)})
    return [tuple(p if i == at else d for i, d in enumerate(dims)) for p in pieces]


_NAMED_SPLITS = {"hsplit": 1, "vsplit": 0, "dsplit": 2}


def _split_dim(op: Op, rank: int) -> int:
    """hsplit takes the second dim, of a vector its only one."""
    if "dim" in op.args:
        return op.dim_index(op.args["dim"], rank)
    return min(_NAMED_SPLITS[str(op.node.target).split(".")[1]], rank - 1)


def split_resize(r: Resize) -> None:
    pieces = list(r.op.memo.values())
    if any(r.changed(p) for p in pieces):
        dim = _split_dim(r.op, len(r.op.dims_of(r.op.args["self"])))
        r.node.target = torch.ops.aten.split_with_sizes.default
        r.node.args = (r.node.args[0], [r.width(p) for p in pieces], dim)
        r.node.kwargs = {}


def slice_(op: Op) -> Dims:
    dims = op.dims_of(op.args["self"])
    at = op.dim_index(op.args["dim"], len(dims))
    whole, size, step = dims[at], op.out_shape[at], int(op.args["step"])
    if whole.size == size:
        return dims
    taken = _strided(op, whole, size, step) if step > 1 else _interval(op, whole, size)
    if taken is None:
        op.freeze(whole, "a slice cuts across it")
        taken = op.closed(size, f"a slice cuts across it at {op.where}")
    return tuple(taken if i == at else d for i, d in enumerate(dims))


def _strided(op: Op, whole: Expr, size: int, step: int) -> Expr | None:
    """x[::step] reads position 0 of each run of `step`: (whole = q·step) freezes only the step."""
    start = _start(op, whole)
    if whole.size != size * step or start is None or start >= step:
        return None
    q = op.fresh(size)
    op.unify(whole, multiply(q, op.closed(step, f"a strided slice reads it at {op.where}")))
    op.memo.update(run=q)
    return q


def _start(op: Op, whole: Expr) -> int | None:
    """The first position that is read; None where it depends on a dynamic size."""
    start = op.args["start"] or 0
    if not isinstance(start, int):
        return None
    return max(start + whole.size, 0) if start < 0 else start


def _interval(op: Op, whole: Expr, size: int) -> Expr | None:
    start = _start(op, whole)
    if start is None:
        return None
    before = _cut(op, whole, start)
    middle = _cut(op, before[1], size) if before else None
    if before is None or middle is None:
        return None
    op.memo.update(before=before[0], middle=middle[0])
    return middle[0]


def _cut(op: Op, expr: Expr, at: int) -> tuple[Expr, Expr] | None:
    if at == 0:
        return NOTHING, expr
    if at == expr.size:
        return expr, NOTHING
    return op.axes.cut(expr, at)


def slice_resize(r: Resize) -> None:
    if "run" in r.op.memo:
        start = _start(r.op, r.op.dims_of(r.op.args["self"])[_at(r.op)])
        r.set(start=start, end=sys.maxsize)
    if "middle" not in r.op.memo:
        return
    before, middle = r.op.memo["before"], r.op.memo["middle"]
    if r.changed(before) or r.changed(middle) or r.changed(r.op.dims_of(r.op.args["self"])[_at(r.op)]):
        start = r.width(before)
        r.set(start=start, end=start + r.width(middle))


def _at(op: Op) -> int:
    return op.dim_index(op.args["dim"], len(op.dims_of(op.args["self"])))


def select(op: Op) -> Dims:
    dims = op.dims_of(op.args["self"])
    op.freeze(dims[_at(op)], "single positions of it are read by number")
    return tuple(d for i, d in enumerate(dims) if i != _at(op))


def unbind(op: Op) -> list[Dims]:
    rest = select(op)
    return [rest for _ in op.out_shape]


def take_output(op: Op) -> Any:
    """operator.getitem on an operator with several outputs."""
    source: Any = op.node.args[0]
    return op.dims[source][op.node.args[1]]


def take_output_dead(view: DeadView) -> State:
    """The places of a pooling's maxima are numbers, zero or not, whatever stands at those places."""
    source: Any = view.op.node.args[0]
    if view.op.node.args[1] == 1 and any(word in str(source.target) for word in INDEXED):
        return State.UNKNOWN
    return view.join([source])


def edge_pad(op: Op) -> Dims:
    """reflection_pad and replication_pad: what is padded is spatial."""
    dims = list(op.dims_of(op.args["self"]))
    for k in range(len(op.args["padding"]) // 2):
        at = len(dims) - 1 - k
        op.freeze(dims[at], "it is padded with copies of itself")
        dims[at] = op.closed(op.out_shape[at], f"padded at {op.where}")
    return tuple(dims)


def edge_pad_dead(view: DeadView) -> State:
    return view.join([view.op.args["self"]])


def narrow(op: Op) -> Dims:
    """slice by start and length."""
    op.args.update(start=op.args["start"], end=None, step=1)
    return slice_(op)


def narrow_resize(r: Resize) -> None:
    if "middle" in r.op.memo:
        r.set(start=r.width(r.op.memo["before"]), length=r.width(r.op.memo["middle"]))


def pad(op: Op) -> Dims:
    """Zero padding makes [z1 + c + z2]; the added positions are prunable, for zeros lose nothing."""
    dims = list(op.dims_of(op.args["self"]))
    amounts = list(op.args["pad"])
    zeros = _pads_zero(op)
    for k in range(len(amounts) // 2):
        at, (left, right) = len(dims) - 1 - k, (amounts[2 * k], amounts[2 * k + 1])
        if (left, right) == (0, 0):
            continue
        if not zeros or not isinstance(left, int) or not isinstance(right, int) or left < 0 or right < 0:
            op.freeze(dims[at], "it is padded with something else than zeros")
            dims[at] = op.closed(op.out_shape[at], f"padded at {op.where}")
            continue
        parts = [op.fresh(left)] * bool(left) + [dims[at]] + [op.fresh(right)] * bool(right)
        op.memo.update({f"left{k}": parts[0]} if left else {}, **({f"right{k}": parts[-1]} if right else {}))
        dims[at] = concatenate(*parts)
    return tuple(dims)


def _pads_zero(op: Op) -> bool:
    return op.args.get("mode", "constant") == "constant" and op.args.get("value") in (None, 0, 0.0)


def pad_dead(view: DeadView) -> State:
    """Padding writes its value at removed positions too, a copied edge what stood there; new positions hold zeros."""
    if view.op.args.get("mode", "constant") != "constant":
        return view.join([view.op.args["self"]])
    if not _pads_zero(view.op):
        return State.UNKNOWN
    state = view.state(view.op.args["self"])
    return State.ZERO if state is None else state


def pad_resize(r: Resize) -> None:
    amounts = list(r.get("pad"))
    for k in range(len(amounts) // 2):
        for side, i in (("left", 2 * k), ("right", 2 * k + 1)):
            if f"{side}{k}" in r.op.memo:
                amounts[i] = r.width(r.op.memo[f"{side}{k}"])
    r.set(pad=amounts)
