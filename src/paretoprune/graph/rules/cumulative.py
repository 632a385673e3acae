"""Running sums, products and extremes along a dim."""

from __future__ import annotations

from typing import Any

from paretoprune.graph.algebra import Expr
from paretoprune.graph.op import DeadView, Dims, Op, State


def _along(op: Op) -> Expr:
    dims = op.dims_of(op.args["self"])
    return dims[op.dim_index(op.args["dim"], len(dims))]


def running_sum(op: Op) -> Dims:
    return op.dims_of(op.args["self"])


def running_sum_dead(view: DeadView) -> State:
    """A zero adds nothing to what follows; at its own place stands the sum so far."""
    x = view.op.args["self"]
    along = _along(view.op)
    view.need_zero(x, [along], "it is summed up along and what is removed is not zero there")
    return State.UNKNOWN if view.contains(along) else view.join([x])


def running(op: Op) -> Any:
    """cumprod, cummax, cummin, logcumsumexp: no removed position is neutral."""
    dims = op.dims_of(op.args["self"])
    op.freeze(_along(op), "every position depends on those before it")
    return [dims for _ in op.out_shape] if isinstance(op.out_shape, list) else dims


def running_product_dead(view: DeadView) -> State:
    """A product of zeros along another dim is zero."""
    return view.join([view.op.args["self"]])
