"""Normalisations. Statistics are taken over kept positions, so each has a masked reference."""

from __future__ import annotations

from typing import Any

import torch

from paretoprune.graph.algebra import Expr, multiply
from paretoprune.graph.op import DeadView, Dims, Op, Resize, State
from paretoprune.graph.rules.reduce import of_parameters


def _follow(op: Op, expr: Expr, *names: str) -> None:
    for name in names:
        if op.args.get(name) is not None:
            op.unify(op.dims_of(op.args[name])[0], expr)


def batch_norm(op: Op) -> Dims:
    """Channels are dim 1. Statistics of the input are taken over all other dims, running ones over none.

    Statistics of the input by choice: a standardised weight (Weight Standardization, Qiao et al. 2019, eq. 5), whose
    statistics are taken over kept entries.
    """
    x = op.dims_of(op.args["input"])
    if _takes_statistics(op.args) and not of_parameters(op.args["input"]):
        op.freeze((*x[:1], *x[2:]), "statistics are taken over its positions")
    _follow(op, x[1], "weight", "bias", "running_mean", "running_var")
    return x


def _takes_statistics(args: dict[str, Any]) -> bool:
    return args["running_mean"] is None or args["training"] is True


def batch_norm_dead(view: DeadView) -> State:
    """Entries that are no part of their filter's statistics are zero, and so is a filter whose entries all are."""
    args = view.op.args
    x = view.op.dims_of(args["input"])
    if not _takes_statistics(args) or view.has(args["weight"]):
        return channel_norm_dead(view)
    if of_parameters(args["input"]) and any(view.contains(e) for e in (*x[:1], *x[2:])):
        return State.ZERO
    silent = args["bias"] is None
    return State.ZERO if silent and view.state(args["input"]) == State.ZERO else State.UNKNOWN


def batch_norm_masked(args: dict[str, Any], masks: dict[str, torch.Tensor | None]) -> torch.Tensor:
    """Statistics over kept entries; what is removed is no entry and stays zero."""
    x, mask = args["input"], masks["input"]
    if not _takes_statistics(args) or mask is None:
        return torch.batch_norm(*args.values())
    mean, var = _moments(x, mask, [i for i in range(x.ndim) if i != 1])
    along = (1, -1) + (1,) * (x.ndim - 2)
    weight, bias = (None if args[k] is None else args[k].reshape(along) for k in ("weight", "bias"))
    return _affine((x - mean) / torch.sqrt(var + args["eps"]), weight, bias) * mask


def instance_norm(op: Op) -> Dims:
    x = op.dims_of(op.args["input"])
    op.freeze(x[2:], "statistics are taken over its positions")
    _follow(op, x[1], "weight", "bias", "running_mean", "running_var")
    return x


def instance_norm_dead(view: DeadView) -> State:
    """Without weights a zero plane stays zero: its mean is zero too."""
    args = view.op.args
    own = args["use_input_stats"] is True and args["weight"] is None
    return view.join([args["input"]]) if own else channel_norm_dead(view)


def channel_norm_dead(view: DeadView) -> State:
    """x̂·w + b with zeroed w and b is zero; without them only batch norm of a zero input with zeroed mean is."""
    args = view.op.args
    if view.has(args["weight"]):
        bias = args["bias"]
        silent = bias is None or view.state(bias) == State.ZERO
        return State.ZERO if view.state(args["weight"]) == State.ZERO and silent else State.UNKNOWN
    running = args.get("running_mean")
    if running is not None and view.has(running) and view.state(args["input"]) == State.ZERO:
        return State.ZERO
    return State.UNKNOWN


def layer_norm(op: Op) -> Dims:
    x = op.dims_of(op.args["input"])
    last = x[len(x) - len(op.args["normalized_shape"]) :]
    for name in ("weight", "bias"):
        if op.args.get(name) is not None:
            for a, b in zip(op.dims_of(op.args[name]), last, strict=True):
                op.unify(a, b)
    return x


def layer_norm_resize(r: Resize) -> None:
    x = r.op.dims_of(r.op.args["input"])
    shape = r.get("normalized_shape")
    r.set(normalized_shape=[r.width(e) for e in x[len(x) - len(shape) :]])


def layer_norm_masked(args: dict[str, Any], masks: dict[str, torch.Tensor | None]) -> torch.Tensor:
    """Mean and variance over the kept positions only. `masks["input"]` broadcasts against the input."""
    x, mask = args["input"], masks["input"]
    dims = list(range(x.ndim - len(args["normalized_shape"]), x.ndim))
    mean, var = _moments(x, mask, dims)
    return _affine((x - mean) / torch.sqrt(var + args["eps"]), args["weight"], args["bias"])


def rms_norm_masked(args: dict[str, Any], masks: dict[str, torch.Tensor | None]) -> torch.Tensor:
    x, mask = args["input"], masks["input"]
    dims = list(range(x.ndim - len(args["normalized_shape"]), x.ndim))
    eps = torch.finfo(x.dtype).eps if args["eps"] is None else args["eps"]
    kept = torch.ones_like(x) if mask is None else mask.expand_as(x).to(x.dtype)
    count = kept.sum(dims, keepdim=True).clamp(min=1)
    mean_square = (x * x * kept).sum(dims, keepdim=True) / count
    return _affine(x / torch.sqrt(mean_square + eps), args["weight"], None)


def _moments(x: torch.Tensor, mask: torch.Tensor | None, dims: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    kept = torch.ones_like(x) if mask is None else mask.expand_as(x).to(x.dtype)
    count = kept.sum(dims, keepdim=True).clamp(min=1)
    mean = (x * kept).sum(dims, keepdim=True) / count
    var = ((x - mean) ** 2 * kept).sum(dims, keepdim=True) / count
    return mean, var


def _affine(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def group_norm(op: Op) -> Dims:
    """Channels are groups × channels within a group; both may be pruned."""
    x = op.dims_of(op.args["input"])
    groups = int(op.args["num_groups"])
    g = op.fresh(groups)
    within = op.fresh(x[1].size // groups)
    op.unify(x[1], multiply(g, within))
    op.freeze(x[2:], "statistics are taken over its positions")
    _follow(op, x[1], "weight", "bias")
    op.memo.update(groups=g)
    return x


def group_norm_resize(r: Resize) -> None:
    if r.changed(r.op.memo["groups"]):
        r.set(num_groups=r.width(r.op.memo["groups"]))


def group_norm_masked(args: dict[str, Any], masks: dict[str, torch.Tensor | None]) -> torch.Tensor:
    x, mask, groups = args["input"], masks["input"], args["num_groups"]
    shape = (x.shape[0], groups, -1)
    flat_mask = None if mask is None else mask.expand_as(x).reshape(shape)
    mean, var = _moments(x.reshape(shape), flat_mask, [2])
    normal = ((x.reshape(shape) - mean) / torch.sqrt(var + args["eps"])).reshape(x.shape)
    along = (1, -1) + (1,) * (x.ndim - 2)
    weight, bias = (None if args[k] is None else args[k].reshape(along) for k in ("weight", "bias"))
    return _affine(normal, weight, bias)


def rms_norm_dead(view: DeadView) -> State:
    """x / rms is zero where x is; a zeroed weight makes it zero anyway."""
    args = view.op.args
    if view.has(args["weight"]) and view.state(args["weight"]) == State.ZERO:
        return State.ZERO
    return State.ZERO if view.state(args["input"]) == State.ZERO else State.UNKNOWN
