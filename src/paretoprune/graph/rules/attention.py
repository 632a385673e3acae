"""Fused attention: softmax(q·kᵀ · scale + mask) · v, one head or many, with fewer key heads than query heads or not."""

from __future__ import annotations

from math import sqrt
from typing import Any

from paretoprune.graph.algebra import multiply
from paretoprune.graph.op import DeadView, Dims, MacTerm, Op, Resize, State
from paretoprune.graph.rules.contraction import view_contraction
from paretoprune.graph.rules.pointwise import broadcast


def attention(op: Op) -> Dims:
    """q (…, L, E), k (…, S, E), v (…, S, Ev), mask against (…, L, S): the result is (…, L, Ev)."""
    q, k, v = (op.dims_of(t) for t in _operands(op))
    op.unify(q[-1], k[-1])
    op.unify(k[-2], v[-2])
    op.freeze(k[-2], "its positions compete in a softmax")
    if op.args["is_causal"]:
        op.freeze(q[-2], "its positions are compared with those of the keys")
    heads = _grouped(op, q, k, v) if op.args["enable_gqa"] else broadcast(op, [q[:-2], k[:-2], v[:-2]])
    if op.args["attn_mask"] is not None:
        broadcast(op, [(*heads, q[-2], k[-2]), op.dims_of(op.args["attn_mask"])])
    return (*heads, q[-2], v[-1])


def _operands(op: Op) -> tuple[Any, Any, Any]:
    return op.args["query"], op.args["key"], op.args["value"]


def _grouped(op: Op, q: Dims, k: Dims, v: Dims) -> Dims:
    """Each head of the keys and values serves a run of query heads: q = kv · rep (Ainslie et al. 2023, GQA)."""
    for shared in (k[-3], v[-3]):
        op.unify(q[-3], multiply(shared, op.fresh(q[-3].size // shared.size)))
    return (*broadcast(op, [q[:-3], k[:-3], v[:-3]]), q[-3])


def attention_dead(view: DeadView) -> State:
    """What is removed from E must be zero in q or in k. Weights are never zero, so zeros of the result are v's."""
    q, k, v = _operands(view.op)
    view_contraction(view, q, view.op.dims_of(q)[-1:], k)
    dims = view.op.dims_of(v)
    carried = any(view.contains(e) for e in (*dims[:-2], dims[-1]))
    return State.ZERO if carried else State.UNKNOWN


def attention_resize(r: Resize) -> None:
    """The scale is 1 / √E of the original width, whatever is left of it."""
    width = r.op.dims_of(r.op.args["query"])[-1]
    if r.get("scale") is None and r.changed(width):
        r.set(scale=1 / sqrt(width.size))


def attention_macs(op: Op) -> list[MacTerm]:
    q, k, _ = (op.dims_of(t) for t in _operands(op))
    return [(1, (*op.out[:-1], k[-2], q[-1])), (1, (*op.out, k[-2]))]
