"""Sums of products by labels: einsum, and the products that are one in disguise.

Every operand's dims get labels; equal labels are one axis, and a label that the result lacks is summed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paretoprune.graph.algebra import UNIT, Expr, multiply
from paretoprune.graph.op import DeadView, Dims, MacTerm, Op, State

Labels = tuple[str, ...]

_EQUATIONS = {
    "aten.mv.default": "ij,j->i",
    "aten.dot.default": "i,i->",
    "aten.vdot.default": "i,i->",
    "aten.outer.default": "i,j->ij",
    "aten.ger.default": "i,j->ij",
    "aten.baddbmm.default": "bij,bjk->bik",
    "aten.addbmm.default": "bij,bjk->ik",
    "aten.addmv.default": "ij,j->i",
    "aten.addr.default": "i,j->ij",
}
"""The product in each operator, over its last operands of that many."""


@dataclass(frozen=True)
class Product:
    """`operands[i]` has the dims labelled `labels[i]`; `out` labels the result."""

    operands: tuple[Any, ...]
    labels: tuple[Labels, ...]
    out: Labels


def _product(op: Op) -> Product:
    name = str(op.node.target)
    if name == "aten.einsum.default":
        return _parsed(op, str(op.args["equation"]), tuple(op.args["tensors"]))
    if name == "aten.tensordot.default":
        return _tensordot(op)
    tensors = [v for k, v in op.args.items() if k not in ("beta", "alpha")]
    if name == "aten.inner.default":
        return _inner(op, tensors)
    return _parsed(op, _EQUATIONS[name], tuple(tensors[-2:]))


def _parsed(op: Op, equation: str, operands: tuple[Any, ...]) -> Product:
    """Ellipses stand for dims aligned from the right. Without an arrow the result has the labels that stand once."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [_letters(t, len(op.shape_of(v))) for t, v in zip(left.split(","), operands, strict=True)]
    dots = max((sum(label.startswith(".") for label in t) for t in terms), default=0)
    if arrow:
        out = _letters(right, dots + len(right.replace("...", "")))
    else:
        every = [label for t in terms for label in t]
        once = sorted(label for label in every if every.count(label) == 1 and not label.startswith("."))
        out = (*(f".{i}" for i in range(-dots, 0)), *once)
    return Product(operands, tuple(terms), out)


def _letters(term: str, rank: int) -> Labels:
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return (*before, *(f".{i}" for i in range(-hidden, 0)), *after)


def _inner(op: Op, operands: Sequence[Any]) -> Product:
    """The last dims of both are summed over."""
    a, b = (len(op.shape_of(v)) for v in operands)
    left, right = (tuple(f"{side}{i}" for i in range(n - 1)) for side, n in (("a", a), ("b", b)))
    return Product(tuple(operands), ((*left, "s"), (*right, "s")), left + right)


def _tensordot(op: Op) -> Product:
    a, b = op.args["self"], op.args["other"]
    names = []
    for side, value, summed in (("a", a, op.args["dims_self"]), ("b", b, op.args["dims_other"])):
        rank = len(op.shape_of(value))
        at = {op.dim_index(d, rank): f"s{i}" for i, d in enumerate(summed)}
        names.append(tuple(at.get(i, f"{side}{i}") for i in range(rank)))
    return Product((a, b), (names[0], names[1]), tuple(n for t in names for n in t if n[0] != "s"))


def einsum(op: Op) -> Dims:
    product = _product(op)
    axes = _by_label(op, product)
    own = [label for label in product.out if sum(label in labels for labels in product.labels) == 1]
    op.memo.update(
        into=multiply(*(axes[label] for label in axes if label not in product.out)),
        out=multiply(*(axes[label] for label in own)),
    )
    return tuple(axes[label] for label in product.out)


def _by_label(op: Op, product: Product) -> dict[str, Expr]:
    """The axis of every label. A dim of size 1 adapts; a label that stands twice in one operand takes a diagonal."""
    found: dict[str, Expr] = {}
    for value, labels in zip(product.operands, product.labels, strict=True):
        for label, expr in zip(labels, op.dims_of(value), strict=True):
            if labels.count(label) > 1:
                op.freeze(expr, "its diagonal is taken")
            if found.setdefault(label, expr).size == 1:
                found[label] = expr
            elif expr.size != 1:
                op.unify(found[label], expr)
    return found


def einsum_dead(view: DeadView) -> State:
    return product_state(view, _product(view.op))


def product_state(view: DeadView, product: Product) -> State:
    """A label is zero where one of its operands is; summing over one that is not would add what was removed."""
    zero: dict[str, bool] = {}
    for value, labels in zip(product.operands, product.labels, strict=True):
        for label, expr in zip(labels, view.op.dims_of(value), strict=True):
            if view.contains(expr):
                zero[label] = zero.get(label, False) or view.state(value) == State.ZERO
    if not all(zero[label] for label in zero if label not in product.out):
        return view.refuse("it is summed over against another activation, and what is removed is not zero there")
    kept = [zero[label] for label in zero if label in product.out]
    return State.ZERO if kept and all(kept) else State.UNKNOWN


def einsum_macs(op: Op) -> list[MacTerm]:
    """From left to right; a label that nothing further right needs is summed over on the way."""
    product = _product(op)
    sizes = {label: expr for label, expr in _sizes(op, product).items() if expr != UNIT}
    terms: list[MacTerm] = []
    open_ = set(product.labels[0])
    for i, labels in enumerate(product.labels[1:], 1):
        open_ |= set(labels)
        terms.append((1, tuple(sizes[label] for label in sorted(open_) if label in sizes)))
        open_ &= {label for later in product.labels[i + 1 :] for label in later}.union(product.out)
    return terms


def _sizes(op: Op, product: Product) -> dict[str, Expr]:
    found: dict[str, Expr] = {}
    for value, labels in zip(product.operands, product.labels, strict=True):
        for label, expr in zip(labels, op.dims_of(value), strict=True):
            if found.setdefault(label, expr).size == 1:
                found[label] = expr
    return found


# -- beta · self + alpha · product -----------------------------------------------------------------------------------


def added(op: Op) -> Dims:
    """baddbmm, addbmm, addmv, addr: what is added broadcasts against the product."""
    dims = einsum(op)
    own = op.dims_of(op.args["self"])
    for expr, mine in zip(reversed(dims), reversed(own), strict=False):
        if mine.size != 1:
            op.unify(expr, mine)
    return dims


def added_dead(view: DeadView) -> State:
    own, beta = view.op.args["self"], view.op.args["beta"]
    silent = beta == 0 or view.state(own) == State.ZERO
    state = product_state(view, _product(view.op))
    return state if silent else State.UNKNOWN


# -- one matrix per run of rows --------------------------------------------------------------------------------------


def grouped_product(op: Op) -> Dims:
    """Rows (T, in) sorted by expert, each run times its own matrix of (experts, in, out)."""
    x, w = (op.dims_of(v) for v in list(op.args.values())[:2])
    if (len(x), len(w)) != (2, 3) or op.args.get("bias") is not None:
        raise ValueError("only rows against a stack of matrices")
    op.freeze((x[0], w[0]), "its positions are sorted into runs")
    op.unify(x[1], w[1])
    op.memo.update(into=w[1], out=w[2])
    return (x[0], w[2])


def grouped_product_dead(view: DeadView) -> State:
    x, w = list(view.op.args.values())[:2]
    inner, out = view.op.dims_of(w)[1:]
    if view.contains(inner) and State.ZERO not in (view.state(x), view.state(w)):
        return view.refuse("it is summed over against another activation, and what is removed is not zero there")
    return State.ZERO if view.contains(out) and view.state(w) == State.ZERO else State.UNKNOWN


def grouped_product_macs(op: Op) -> list[MacTerm]:
    x, w = (op.dims_of(v) for v in list(op.args.values())[:2])
    return [(1, (*x, w[2]))]
