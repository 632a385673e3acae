"""Writing by number: scatter, index_put, index_add. What is numbered freezes, the other dims flow."""

from __future__ import annotations

from typing import Any

from paretoprune.graph.op import DeadView, Dims, Op, State
from paretoprune.graph.rules.index import is_mask, spans_of, start_of, taken_by
from paretoprune.graph.rules.pointwise import broadcast

WRITTEN = "its positions are written by number"


def scatter(op: Op) -> Dims:
    """x[index[i, j], j] = src[i, j] along dim 0: elsewhere position j of all three is one."""
    dims, at = op.dims_of(op.args["self"]), _dim(op)
    for name in ("index", "src"):
        if not op.is_tensor(op.args.get(name)):
            continue
        for i, (d, e) in enumerate(zip(dims, op.dims_of(op.args[name]), strict=True)):
            if i == at or d.size != e.size:
                op.freeze((d, e), WRITTEN if i == at else "only the first of its positions are written")
            else:
                op.unify(d, e)
    return dims


def _dim(op: Op) -> int:
    return op.dim_index(op.args["dim"], len(op.dims_of(op.args["self"])))


def index_add(op: Op) -> Dims:
    """index_add, index_copy, index_fill: whole slices along dim are written; the slices' own dims flow."""
    dims, at = op.dims_of(op.args["self"]), _dim(op)
    op.freeze((*dims[at : at + 1], *op.dims_of(op.args["index"])), WRITTEN)
    source: Any = op.args.get("source")
    if op.is_tensor(source):
        for i, (d, e) in enumerate(zip(dims, op.dims_of(source), strict=False)):
            if i == at:
                op.freeze(e, WRITTEN)
            else:
                op.unify(d, e)
    return dims


def index_put(op: Op) -> Dims:
    """x[i, :, j] = values, or += values: the values broadcast against what the same indices would read."""
    dims, taken = op.dims_of(op.args["self"]), taken_by(op)
    indices = [value for _, _, value in spans_of(op)]
    op.freeze([dims[i] for i in taken], WRITTEN)
    for value in indices:
        op.freeze(op.dims_of(value), WRITTEN)
    free, start = [d for i, d in enumerate(dims) if i not in taken], start_of(taken)
    rank = max(1 if is_mask(value) else len(op.dims_of(value)) for value in indices)
    slots = [*free[:start], *[None] * rank, *free[start:]]
    for slot, expr in zip(reversed(slots), reversed(op.dims_of(op.args["values"])), strict=False):
        if slot is None:
            op.freeze(expr, WRITTEN)
        elif expr.size != 1:
            op.unify(slot, expr)
    return dims


def written_dead(view: DeadView) -> State:
    """Zero stays where zero is written: both must be zero, for the rest of either may show."""
    args = view.op.args
    name = next(n for n in ("src", "source", "values", "value") if n in args)
    return max(_state(view, args["self"]), _state(view, args[name]))


def _state(view: DeadView, value: Any) -> State:
    if not view.op.is_tensor(value):
        return State.ZERO if isinstance(value, (int, float)) and value == 0 else State.UNKNOWN
    state = view.state(value)
    return State.UNKNOWN if state is None else state


def masked_fill(op: Op) -> Dims:
    operands = [op.dims_of(op.args[n]) for n in ("self", "mask")]
    value = op.args["value"]
    return broadcast(op, [*operands, op.dims_of(value)] if op.is_tensor(value) else operands)
