"""Sums, means, norms and maxima over dims, and what mixes an axis in a way that cannot be pruned."""

from __future__ import annotations

from math import inf, prod
from typing import Any

import torch
from torch import fx

from paretoprune.graph.algebra import UNIT, Expr
from paretoprune.graph.op import WHOLE, DeadView, Dims, Op, Resize, State
from paretoprune.graph.rules.signs import never_negative


def _dims(op: Op) -> list[int]:
    rank = len(op.dims_of(op.args["self"]))
    named = op.args.get("dim")
    if named is None or named == []:
        return list(range(rank))
    return [op.dim_index(d, rank) for d in ([named] if isinstance(named, int) else named)]


def reduce(op: Op) -> Dims:
    dims, gone = op.dims_of(op.args["self"]), _dims(op)
    if op.args.get("keepdim"):
        return tuple(UNIT if i in gone else d for i, d in enumerate(dims))
    return tuple(d for i, d in enumerate(dims) if i not in gone)


def reduced(op: Op) -> list[Expr]:
    dims = op.dims_of(op.args["self"])
    return [dims[i] for i in _dims(op)]


def freezing_reduce(op: Op) -> Dims:
    """Products, log-sum-exps, minima: no value at a removed position would be neutral."""
    op.freeze(reduced(op), "it is reduced in a way that no removed position is neutral to")
    return reduce(op)


def freezing_reduce_pair(op: Op) -> list[Dims]:
    result = freezing_reduce(op)
    return [result for _ in op.out_shape]


def softmax(op: Op) -> Dims:
    op.freeze(reduced(op), "its positions compete in a softmax")
    return op.dims_of(op.args["self"])


def sum_dead(view: DeadView) -> State:
    x = view.op.args["self"]
    view.need_zero(x, reduced(view.op), "it is summed up and what is removed is not zero there")
    return view.join([x])


# -- norms -----------------------------------------------------------------------------------------------------------


def norm(op: Op) -> Dims:
    """(Σ|x|^p)^(1/p) for p ≥ 0 and the largest |x|: a zero is neutral. Other orders and matrix norms are not."""
    order = op.args.get("ord", op.args.get("p"))
    plain = order is None or (isinstance(order, (int, float)) and order >= 0)
    matrix = "ord" in op.args and "linalg_norm" in str(op.node.target) and order is not None and len(reduced(op)) > 1
    return reduce(op) if plain and not matrix else freezing_reduce(op)


def norm_dead(view: DeadView) -> State:
    x = view.op.args["self"]
    view.need_zero(x, reduced(view.op), "a norm is taken over it and what is removed is not zero there")
    order = view.op.args.get("ord", view.op.args.get("p"))
    return view.join([x]) if order is None or order in (1, 2, inf) else State.UNKNOWN


# -- means and deviations --------------------------------------------------------------------------------------------


def mean(op: Op) -> Dims:
    """Of an activation the divisor stays what it was; in a root mean square normalisation, or of parameters alone (a
    standardised weight), it is a statistic.
    """
    if not of_parameters(op.args["self"]) and not _normalises(op.node):
        op.memo[WHOLE] = UNIT
    return reduce(op)


def _normalises(node: fx.Node) -> bool:
    """Is this the mean in x · rsqrt(mean(x²) + eps), a normalisation that is spelled out?"""
    square = node.args[0]
    if not isinstance(square, fx.Node) or len(node.args) < 3 or node.args[2] is not True:
        return False
    target, values = str(square.target), square.args
    second = {"aten.pow.Tensor_Scalar": 2, "aten.mul.Tensor": values[0], "aten.square.default": None}
    if target not in second or (len(values) > 1 and values[1] is not second[target]):
        return False
    root, times = _only_user(node), "aten.mul.Tensor"
    if root is not None and str(root.target) in ("aten.add.Tensor", "aten.add.Scalar"):
        root = None if isinstance(root.args[1], fx.Node) else _only_user(root)
    if root is not None and str(root.target) == "aten.sqrt.default":
        times = "aten.div.Tensor"
    elif root is None or not (
        str(root.target) == "aten.rsqrt.default"
        or (str(root.target) == "aten.pow.Tensor_Scalar" and root.args[1] == -0.5)
    ):
        return False
    product = _only_user(root)
    if product is None or str(product.target) != times:
        return False
    scaled = [a for a in product.args if isinstance(a, fx.Node) and _uncast(a) is _uncast(values[0])]
    return bool(scaled) and (times != "aten.div.Tensor" or scaled[0] is product.args[0])


def _only_user(node: fx.Node) -> fx.Node | None:
    users = [u for u in node.users if u.op != "output"]
    if len(users) != 1 or len(node.users) != 1:
        return None
    return _only_user(users[0]) if str(users[0].target) in _CASTS else users[0]


_CASTS = frozenset({"aten.to.dtype", "aten._to_copy.default", "aten.type_as.default"})


def _uncast(node: Any) -> Any:
    while isinstance(node, fx.Node) and str(node.target) in _CASTS:
        node = node.args[0]
    return node


def mean_dead(view: DeadView) -> State:
    return sum_dead(view) if WHOLE in view.op.memo else view.join([view.op.args["self"]])


def mean_resize(r: Resize) -> None:
    """The mean over what is left, times new size / old size; a dynamic factor of both cancels."""
    exprs = [e for e in reduced(r.op) if r.changed(e)]
    if WHOLE not in r.op.memo or not exprs:
        return
    share = prod(r.width(e) for e in exprs) / prod(e.size for e in exprs)
    with r.node.graph.inserting_after(r.node):
        new: fx.Node = r.node.graph.call_function(torch.ops.aten.mul.Tensor, (r.node, share))
    new.meta = dict(r.node.meta)
    r.node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def mean_masked(args: dict[str, Any], masks: dict[str, torch.Tensor | None]) -> torch.Tensor:
    total, count = _kept_sum(args["self"], masks["self"], args)
    return _squeezed(total / count, args)


def spread(op: Op) -> Any:
    """var, std and both with the mean: of parameters alone over kept positions, else what they reduce is frozen."""
    result = reduce(op) if of_parameters(op.args["self"]) else freezing_reduce(op)
    return [result for _ in op.out_shape] if isinstance(op.out_shape, list) else result


def spread_dead(view: DeadView) -> State:
    """The deviation and the mean of zeros are zero."""
    x = view.op.args["self"]
    return State.ZERO if view.state(x) == State.ZERO else State.UNKNOWN


def var_masked(args: dict[str, Any], masks: dict[str, torch.Tensor | None]) -> torch.Tensor:
    return _squeezed(_var_mean(args, masks)[0], args)


def std_masked(args: dict[str, Any], masks: dict[str, torch.Tensor | None]) -> torch.Tensor:
    return _squeezed(_var_mean(args, masks)[0].sqrt(), args)


def var_mean_masked(args: dict[str, Any], masks: dict[str, torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
    var, average = _var_mean(args, masks)
    return _squeezed(var, args), _squeezed(average, args)


def std_mean_masked(args: dict[str, Any], masks: dict[str, torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
    var, average = _var_mean(args, masks)
    return _squeezed(var.sqrt(), args), _squeezed(average, args)


def _var_mean(args: dict[str, Any], masks: dict[str, torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
    x, mask = args["self"], masks["self"]
    total, count = _kept_sum(x, mask, args)
    average = total / count
    squares, _ = _kept_sum((x - average) ** 2, mask, args)
    correction = args.get("correction", 1 if args.get("unbiased", True) else 0)
    return squares / (count - (1 if correction is None else correction)), average


def _kept_sum(x: torch.Tensor, mask: torch.Tensor | None, args: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum, count) over the kept positions of the reduced dims, which stay with size 1."""
    kept = torch.ones_like(x) if mask is None else mask.expand_as(x).to(x.dtype)
    dims = _plain_dims(args, x.ndim)
    return (x * kept).sum(dims, keepdim=True), kept.sum(dims, keepdim=True).clamp(min=1)


def _plain_dims(args: dict[str, Any], rank: int) -> list[int]:
    named = args.get("dim")
    return list(range(rank)) if named is None or named == [] else [named] if isinstance(named, int) else list(named)


def _squeezed(x: torch.Tensor, args: dict[str, Any]) -> torch.Tensor:
    return x if args.get("keepdim") else x.squeeze(_plain_dims(args, x.ndim))


def of_parameters(node: Any) -> bool:
    """Does the value depend on parameters and buffers alone, on no input?"""
    stack, seen = [node], {node}
    while stack:
        top = stack.pop()
        if top.op == "placeholder":
            return False
        for source in top.all_input_nodes:
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return True


# -- extremes --------------------------------------------------------------------------------------------------------


def maximum(op: Op) -> Any:
    """amax, and max with positions that nobody reads. Only where no value is negative is a zero neutral."""
    pair = isinstance(op.out_shape, list)
    if (pair and _reads_positions(op.node)) or not never_negative(op.args["self"]):
        op.freeze(reduced(op), "a maximum is taken over it")
    result = reduce(op)
    return [result, result] if pair else result


def _reads_positions(node: fx.Node) -> bool:
    return any(user.args[1] != 0 for user in node.users)


def maximum_dead(view: DeadView) -> State:
    x = view.op.args["self"]
    view.need_zero(x, reduced(view.op), "a maximum is taken over it")
    return view.join([x])


def minimum_dead(view: DeadView) -> State:
    return view.join([view.op.args["self"]])
