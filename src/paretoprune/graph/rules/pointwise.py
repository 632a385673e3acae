"""Elementwise operators with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paretoprune.graph.algebra import UNIT, Expr
from paretoprune.graph.op import DeadView, Dims, Op, State


def broadcast(op: Op, operands: Sequence[Dims]) -> Dims:
    """Dims aligned from the right; a dim of size 1 adapts, all others are one axis."""
    rank = max((len(d) for d in operands), default=0)
    result: list[Expr] = []
    for i in range(-rank, 0):
        meeting = [d[i] for d in operands if len(d) >= -i and d[i].size != 1]
        for other in meeting[1:]:
            op.unify(meeting[0], other)
        result.append(meeting[0] if meeting else UNIT)
    return tuple(result)


def pointwise(op: Op) -> Dims:
    return broadcast(op, [op.dims_of(t) for t in op.tensors()])


def prelu(op: Op) -> Dims:
    x, weight = op.dims_of(op.args["self"]), op.dims_of(op.args["weight"])
    if weight and weight[0].size > 1:
        op.unify(x[1], weight[0])
    return x


# -- what stands at removed positions --------------------------------------------------------------------------------


def zero_stays(view: DeadView) -> State:
    """f(0) = 0: ReLU, tanh, GELU, abs."""
    return State.ZERO if _only(view) == State.ZERO else State.UNKNOWN


def clamp_dead(view: DeadView) -> State:
    """clamp and hardtanh keep a zero if it lies between their bounds."""
    low, high = (_bound(view.op, *names) for names in (("min", "min_val"), ("max", "max_val")))
    numbers = all(v is None or isinstance(v, (int, float)) for v in (low, high))
    inside = numbers and (low is None or low <= 0) and (high is None or high >= 0)
    return State.ZERO if inside and _only(view) == State.ZERO else State.UNKNOWN


def _bound(op: Op, *names: str) -> Any:
    return next((op.args[n] for n in names if n in op.args), None)


def _only(view: DeadView) -> State:
    return view.join(view.op.tensors())


def sum_dead(view: DeadView) -> State:
    """f(0, 0) = 0 (a ± b, the larger of two): zero only where both are; what is broadcast may be anything there."""
    return max(_operands(view, "self", "other"))


def _operands(view: DeadView, *names: str) -> list[State]:
    return [_operand(view, view.op.args[n]) for n in names]


def _operand(view: DeadView, value: Any) -> State:
    if not view.op.is_tensor(value):
        return State.ZERO if isinstance(value, (int, float)) and value == 0 else State.UNKNOWN
    state = view.state(value)
    return State.UNKNOWN if state is None else state


def product_dead(view: DeadView) -> State:
    """a · b: zero where one of them is."""
    return min(_operands(view, "self", "other"))


def quotient_dead(view: DeadView) -> State:
    """0 / b and remainders of it: zero unless b is zero there too."""
    top, bottom = _operands(view, "self", "other")
    return State.ZERO if top == State.ZERO and bottom != State.ZERO else State.UNKNOWN


def power_dead(view: DeadView) -> State:
    exponent = view.op.args["exponent"]
    positive = isinstance(exponent, (int, float)) and exponent > 0
    return State.ZERO if positive and view.state(view.op.args["self"]) == State.ZERO else State.UNKNOWN


def first_dead(view: DeadView) -> State:
    """f(0, b) = 0 whatever b is: the sign of another tensor, a learned slope."""
    return _operand(view, view.op.args["self"])


def either_dead(view: DeadView) -> State:
    """where, lerp: one of two values, or something between them."""
    names = ("self", "end") if "end" in view.op.args else ("self", "other")
    return max(_operands(view, *names))


def threshold_dead(view: DeadView) -> State:
    """A zero at or below the threshold is replaced."""
    level, value = view.op.args["threshold"], view.op.args["value"]
    return first_dead(view) if level < 0 or value == 0 else State.UNKNOWN


def addcmul_dead(view: DeadView) -> State:
    """self + value · a · b."""
    own, a, b = _operands(view, "self", "tensor1", "tensor2")
    return max(own, min(a, b))


def addcdiv_dead(view: DeadView) -> State:
    """self + value · a / b."""
    own, a, b = _operands(view, "self", "tensor1", "tensor2")
    return max(own, a) if b != State.ZERO else State.UNKNOWN
