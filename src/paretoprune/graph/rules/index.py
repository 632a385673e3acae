"""Reading by number: embeddings, indexing, gather, sorting. What is numbered freezes, everything else flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from paretoprune.graph.algebra import multiply
from paretoprune.graph.op import DeadView, Dims, Op, Resize, State
from paretoprune.graph.rules.pointwise import broadcast

LOOKED_UP = "its positions are looked up by number"
SORTED = "its positions are ranked by value"


# -- tables ----------------------------------------------------------------------------------------------------------


def embedding(op: Op) -> Dims:
    """A row for every index: (indices…, width)."""
    rows, width = op.dims_of(op.args["weight"])
    op.freeze(rows, LOOKED_UP)
    op.memo.update(into=rows, out=width)
    return (*op.dims_of(op.args["indices"]), width)


def embedding_dead(view: DeadView) -> State:
    return _read_dead(view, view.op.args["weight"], [view.op.args["indices"]])


def embedding_bag(op: Op) -> list[Dims]:
    """Sums, means or maxima of rows; the further outputs count indices. The maximum's name their rows, per width."""
    rows, width = op.dims_of(op.args["weight"])
    for value in op.tensors()[1:]:
        op.freeze(op.dims_of(value), "it lists the entries of bags")
    op.freeze(rows, LOOKED_UP)
    op.memo.update(into=rows, out=width)
    shapes = op.out_shape
    counts = [tuple(op.closed(s, "it counts the entries of bags") for s in shape) for shape in shapes]
    return [(counts[0][0], width), *((*c[:-1], width) if len(c) == 2 else c for c in counts[1:])]


def embedding_bag_dead(view: DeadView) -> State:
    """The bags of a removed width are zero; which rows won a maximum there is not known."""
    more = any(user.args[1] != 0 for user in view.op.node.users)
    return State.ZERO if view.state(view.op.args["weight"]) == State.ZERO and not more else State.UNKNOWN


# -- indices in tensors ----------------------------------------------------------------------------------------------


def index(op: Op) -> Dims:
    """x[i, :, j]: the indices' common dims stand where they began, in front if a slice is between them."""
    dims, taken = op.dims_of(op.args["self"]), taken_by(op)
    op.freeze([dims[i] for i in taken], LOOKED_UP)
    found = broadcast(op, [_index_dims(op, value) for _, _, value in spans_of(op)])
    free, start = [d for i, d in enumerate(dims) if i not in taken], start_of(taken)
    return (*free[:start], *found, *free[start:])


def spans_of(op: Op) -> list[tuple[int, int, Any]]:
    """(first dim, number of dims, index) for every index; a mask covers as many dims as it has."""
    spans, at = [], 0
    for value in op.args["indices"]:
        n = len(op.shape_of(value)) if value is not None and is_mask(value) else 1
        if value is not None:
            spans.append((at, n, value))
        at += n
    return spans


def is_mask(value: Any) -> bool:
    known = value.meta.get("val")
    return known is not None and known.dtype in (torch.bool, torch.uint8)


def _index_dims(op: Op, value: Any) -> Dims:
    """A mask reads as many positions as it is true at, which is seen at the result alone."""
    if not is_mask(value):
        return op.dims_of(value)
    op.freeze(op.dims_of(value), "it is a mask of positions")
    return (op.closed(op.out_shape[start_of(taken_by(op))], "it counts what a mask is true at"),)


def taken_by(op: Op) -> list[int]:
    """The dims that indices run over."""
    return [i for at, n, _ in spans_of(op) for i in range(at, at + n)]


def start_of(taken: list[int]) -> int:
    """Where the indices' common dims stand in the result."""
    return taken[0] if taken == list(range(taken[0], taken[-1] + 1)) else 0


def index_dead(view: DeadView) -> State:
    op = view.op
    return _read_dead(view, op.args["self"], [v for v in op.args["indices"] if v is not None])


def _read_dead(view: DeadView, source: Any, indices: Sequence[Any]) -> State:
    """Zeros of what is read stay zeros along dims that no index runs over."""
    if any(view.has(v) for v in indices):
        return State.UNKNOWN
    return State.ZERO if view.state(source) == State.ZERO else State.UNKNOWN


def index_select(op: Op) -> Dims:
    dims, at = op.dims_of(op.args["self"]), _dim(op)
    op.freeze(dims[at : at + 1], LOOKED_UP)
    found = op.dims_of(op.args["index"]) or (op.fresh(1),)
    return (*dims[:at], *found, *dims[at + 1 :])


def one_index_dead(view: DeadView) -> State:
    return _read_dead(view, view.op.args["self"], [view.op.args["index"]])


def _dim(op: Op, name: str = "self") -> int:
    return op.dim_index(op.args["dim"], len(op.dims_of(op.args[name])))


def gather(op: Op) -> Dims:
    """out[i, j] = x[i, index[i, j]] along dim 1: elsewhere position i of the index is position i of x."""
    dims, found, at = op.dims_of(op.args["self"]), op.dims_of(op.args["index"]), _dim(op)
    for i, (d, e) in enumerate(zip(dims, found, strict=True)):
        if i == at:
            op.freeze(d, LOOKED_UP)
        elif d.size == e.size:
            op.unify(d, e)
        else:
            op.freeze((d, e), "only the first of its positions are read")
    return found


def gather_dead(view: DeadView) -> State:
    """A removed position reads removed ones, but for the dim that the index runs over: there it reads anything."""
    args = view.op.args
    found = view.op.dims_of(args["index" if "index" in args else "indices"])
    numbered = view.contains(found[_dim(view.op)])
    return State.ZERO if view.state(args["self"]) == State.ZERO and not numbered else State.UNKNOWN


def take_along(op: Op) -> Dims:
    """gather with the other dims broadcast; without a dim, over the flat tensor."""
    if op.args["dim"] is None:
        return take(op, "indices")
    dims, found, at = op.dims_of(op.args["self"]), op.dims_of(op.args["indices"]), _dim(op)
    op.freeze(dims[at], LOOKED_UP)
    rest = [d[:at] + d[at + 1 :] for d in (dims, found)]
    others = broadcast(op, rest)
    return (*others[:at], found[at], *others[at:])


def take_along_dead(view: DeadView) -> State:
    return gather_dead(view) if view.op.args["dim"] is not None else State.UNKNOWN


def take(op: Op, name: str = "index") -> Dims:
    op.freeze(op.dims_of(op.args["self"]), LOOKED_UP)
    return op.dims_of(op.args[name])


# -- repetition ------------------------------------------------------------------------------------------------------


def repeat_interleave(op: Op) -> Dims:
    """Every position stands `repeats` times in a row: (d · rep), and rep is an axis of copies."""
    dims = op.dims_of(op.args["self"])
    if op.args["dim"] is None:
        dims, at = (multiply(*dims),), 0
    else:
        at = _dim(op)
    copies = op.fresh(op.out_shape[at] // dims[at].size)
    op.memo.update(copies=copies, whole=multiply(dims[at], copies))
    return (*dims[:at], op.memo["whole"], *dims[at + 1 :])


def repeat_interleave_resize(r: Resize) -> None:
    if r.changed(r.op.memo["copies"]):
        r.set(repeats=r.sizes([r.get("repeats")], [r.op.memo["copies"]])[0])
    if r.get("output_size") is not None and r.changed(r.op.memo["whole"]):
        r.set(output_size=None)


# -- positions and ranks ---------------------------------------------------------------------------------------------


def counting(op: Op) -> Dims:
    """arange, eye, one_hot: values that tell positions apart."""
    given = op.dims_of(op.args["self"]) if op.is_tensor(op.args.get("self")) else ()
    new = op.out_shape[len(given) :]
    return (*given, *(op.closed(s, f"it counts positions at {op.where}") for s in new))


def triangle(op: Op) -> Dims:
    """tril and triu compare the positions of the last two dims."""
    dims = op.dims_of(op.args["self"])
    op.freeze(dims[-2:], "its positions are compared")
    return dims


def ranked(op: Op) -> Any:
    """topk, sort, argsort, kthvalue, median, mode: one dim is ranked, the others do not meet."""
    dims, at = op.dims_of(op.args["self"]), _dim(op)
    op.freeze(dims[at : at + 1], SORTED)
    several = isinstance(op.out_shape, list)
    results = [_ranked(op, dims, at, shape) for shape in (op.out_shape if several else [op.out_shape])]
    return results if several else results[0]


def _ranked(op: Op, dims: Dims, at: int, shape: Sequence[int]) -> Dims:
    if len(shape) < len(dims):
        return (*dims[:at], *dims[at + 1 :])
    return (*dims[:at], *(op.closed(s, f"{SORTED} at {op.where}") for s in shape[at : at + 1]), *dims[at + 1 :])


def bucketize(op: Op) -> Dims:
    """Every value becomes the number of its interval."""
    op.freeze(op.dims_of(op.args["boundaries"]), SORTED)
    return op.dims_of(op.args["self"])


def all_by_position(op: Op) -> Any:
    """nonzero, masked_select, histc, unique: values decide where anything lands."""
    for value in op.tensors():
        op.freeze(op.dims_of(value), "values decide where its positions land")
    return _closed(op, op.out_shape)


def _closed(op: Op, shape: Any) -> Any:
    if isinstance(shape, list):
        return [_closed(op, s) for s in shape]
    return tuple(op.closed(s, f"values decide its positions at {op.where}") for s in shape)
