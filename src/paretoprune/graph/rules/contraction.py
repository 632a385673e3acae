"""Convolutions, linear layers and matrix products: what sums over an axis with another operand."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.nn import functional as F

from paretoprune.core.layers import LayerSpec
from paretoprune.graph.algebra import UNIT, Expr, multiply
from paretoprune.graph.op import DeadView, Dims, MacTerm, Op, Resize, State
from paretoprune.graph.rules.einsum import Product, product_state


def _spatial_rank(op: Op) -> int:
    return len(op.shape_of(op.args["weight"])) - 2


def convolution(op: Op) -> Dims:
    """in = groups·i, out = groups·o; the weight is (groups·o, i, k…), transposed (groups·i, o, k…)."""
    x, w, bias = op.args["input"], op.args["weight"], op.args["bias"]
    rank, groups = _spatial_rank(op), int(op.args["groups"])
    transposed = "output_padding" in op.args
    x_dims, w_dims = op.dims_of(x), op.dims_of(w)
    channels = len(x_dims) - rank - 1
    op.freeze(x_dims[channels + 1 :], "its positions are spatial")
    op.freeze(w_dims[2:], "its positions are a kernel's")
    g = op.fresh(groups)
    whole = w_dims[0].size // groups
    inner = op.fresh(whole)
    op.unify(w_dims[0], multiply(g, inner))
    into, out_inner = (inner, w_dims[1]) if transposed else (w_dims[1], inner)
    op.unify(x_dims[channels], multiply(g, into))
    out = multiply(g, out_inner)
    if bias is not None:
        op.unify(op.dims_of(bias)[0], out)
    op.memo.update(groups=g, out=out, into=into, out_inner=out_inner)
    spatial = tuple(op.closed(s, "its positions are spatial") for s in op.out_shape[channels + 1 :])
    return (*x_dims[:channels], out, *spatial)


def convolution_resize(r: Resize) -> None:
    if r.changed(r.op.memo["groups"]):
        r.set(groups=r.width(r.op.memo["groups"]))


def weighted_dead(view: DeadView) -> State:
    """Rows of a weight are zeroed together with their bias; elsewhere only a zero input without a bias stays zero."""
    op = view.op
    x, w, bias = op.args["input"], op.args["weight"], op.args["bias"]
    rank = _spatial_rank(op)
    channel = op.dims_of(x)[len(op.dims_of(x)) - rank - 1]
    view_contraction(view, x, [channel], w)
    if view.contains(op.memo["out"]):
        silent = bias is None or view.state(bias) == State.ZERO
        return State.ZERO if view.state(w) == State.ZERO and silent else State.UNKNOWN
    return State.ZERO if view.state(x) == State.ZERO and bias is None else State.UNKNOWN


def view_contraction(view: DeadView, x: Any, summed: Sequence[Expr], w: Any) -> None:
    """Summing over a removed position needs a zero on one side at least (a parameter is one: it is zeroed)."""
    if any(view.contains(e) for e in summed) and State.ZERO not in (view.state(x), view.state(w)):
        view.refuse("it is summed over against another activation, and what is removed is not zero there")


def convolution_macs(op: Op) -> list[MacTerm]:
    kernel = op.dims_of(op.args["weight"])[2:]
    memo = op.memo
    transposed = "output_padding" in op.args
    x_dims = op.dims_of(op.args["input"])
    rank = len(kernel)
    plane = x_dims[len(x_dims) - rank :] if transposed else op.out[len(op.out) - rank :]
    return [(1, (*x_dims[: len(x_dims) - rank - 1], memo["groups"], memo["into"], memo["out_inner"], *kernel, *plane))]


def convolution_layer(op: Op) -> LayerSpec | None:
    weight = op.shape_of(op.args["weight"])
    rank = len(weight) - 2
    size = op.shape_of(op.args["input"])[-rank:]
    padding = _padding(op.args["padding"], weight[2:], op.args["dilation"])
    if padding is None:
        return None
    groups = int(op.args["groups"])
    transposed = "output_padding" in op.args
    return LayerSpec(
        kind="conv_transpose" if transposed else "conv",
        inputs=weight[0] if transposed else weight[1] * groups,
        outputs=weight[1] * groups if transposed else weight[0],
        kernel=tuple(weight[2:]),
        stride=_spread(op.args["stride"], rank),
        padding=padding,
        dilation=_spread(op.args["dilation"], rank),
        groups=groups,
        spatial=tuple(op.per_sample(s) for s in size),
        rows=1,
    )


def _spread(value: Any, rank: int) -> tuple[int, ...]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(int(v) for v in (values * rank if len(values) == 1 else values))


def _padding(value: Any, kernel: Sequence[int], dilation: Any) -> tuple[int, ...] | None:
    """Symmetric padding in numbers, None for an uneven "same"."""
    if value == "valid":
        return (0,) * len(kernel)
    if value == "same":
        total = [d * (k - 1) for k, d in zip(kernel, _spread(dilation, len(kernel)), strict=True)]
        return None if any(t % 2 for t in total) else tuple(t // 2 for t in total)
    return _spread(value, len(kernel))


def convolution_rows(op: Op, x: torch.Tensor) -> torch.Tensor:
    """The input patches as rows (samples · positions, inputs × taps), inputs outer."""
    layer = convolution_layer(op)
    if layer is None:
        raise ValueError(f"{op.where}: uneven padding has no rows")
    return patches(layer, x)


def patches(layer: LayerSpec, x: torch.Tensor) -> torch.Tensor:
    """Rows of an activation that enters a convolution without groups."""
    rank = len(layer.kernel)
    x = x.reshape(-1, *x.shape[x.ndim - rank - 1 :])
    if layer.kernel == (1,) * rank and not any(layer.padding):
        x = x[(slice(None), slice(None), *(slice(None, None, s) for s in layer.stride))]
        return x.movedim(1, -1).reshape(-1, x.shape[1])
    if rank == 2:
        unfolded = F.unfold(x, layer.kernel, layer.dilation, layer.padding, layer.stride)
        return unfolded.transpose(0, 1).flatten(1).T
    x = F.pad(x, [p for pad in reversed(layer.padding) for p in (pad, pad)])
    for i, (k, s, d) in enumerate(zip(layer.kernel, layer.stride, layer.dilation, strict=True)):
        x = x.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
    order = (0, *range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank))
    return x.permute(order).reshape(-1, x.shape[1] * torch.Size(layer.kernel).numel())


def linear(op: Op) -> Dims:
    x, w, bias = op.args["input"], op.args["weight"], op.args["bias"]
    x_dims, w_dims = op.dims_of(x), op.dims_of(w)
    op.unify(x_dims[-1], w_dims[-1])
    out = w_dims[:-1]
    if bias is not None and out:
        op.unify(op.dims_of(bias)[-1], out[0])
    op.memo.update(groups=UNIT, into=w_dims[-1], out=multiply(*out), out_inner=multiply(*out))
    return (*x_dims[:-1], *out)


def linear_dead(view: DeadView) -> State:
    op = view.op
    x, w, bias = op.args["input"], op.args["weight"], op.args["bias"]
    view_contraction(view, x, op.dims_of(x)[-1:], w)
    if any(view.contains(e) for e in op.dims_of(w)[:-1]):
        silent = bias is None or view.state(bias) == State.ZERO
        return State.ZERO if view.state(w) == State.ZERO and silent else State.UNKNOWN
    return State.ZERO if view.state(x) == State.ZERO and bias is None else State.UNKNOWN


def linear_macs(op: Op) -> list[MacTerm]:
    return [(1, (*op.dims_of(op.args["input"]), *op.dims_of(op.args["weight"])[:-1]))]


def linear_layer(op: Op) -> LayerSpec | None:
    weight, x = op.shape_of(op.args["weight"]), op.shape_of(op.args["input"])
    if len(weight) != 2:
        return None
    rows = prod(op.per_sample(s) for s in x[:-1])
    return LayerSpec("linear", inputs=weight[1], outputs=weight[0], rows=rows)


def bilinear(op: Op) -> Dims:
    """Weight (out, left, right): a sum over both inputs' last dims at once."""
    left, right, bias = op.args["input1"], op.args["input2"], op.args["bias"]
    w = op.dims_of(op.args["weight"])
    a, b = op.dims_of(left), op.dims_of(right)
    op.unify(a[-1], w[1])
    op.unify(b[-1], w[2])
    for x, y in zip(a[:-1], b[:-1], strict=True):
        op.unify(x, y)
    if bias is not None:
        op.unify(op.dims_of(bias)[0], w[0])
    return (*a[:-1], w[0])


def bilinear_dead(view: DeadView) -> State:
    """Zero where the weight's rows and the bias are; elsewhere where either input is and nothing is added."""
    op = view.op
    inputs, w, bias = [op.args["input1"], op.args["input2"]], op.args["weight"], op.args["bias"]
    for x in inputs:
        view_contraction(view, x, op.dims_of(x)[-1:], w)
    if view.contains(op.dims_of(w)[0]):
        silent = bias is None or view.state(bias) == State.ZERO
        return State.ZERO if view.state(w) == State.ZERO and silent else State.UNKNOWN
    return State.ZERO if bias is None and State.ZERO in map(view.state, inputs) else State.UNKNOWN


def bilinear_macs(op: Op) -> list[MacTerm]:
    """Weight times the left input, then that times the right one."""
    out, left, right = op.dims_of(op.args["weight"])
    lead = op.dims_of(op.args["input1"])[:-1]
    return [(1, (*lead, out, left, right)), (1, (*lead, out, right))]


def linear_rows(op: Op, x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def matrix_product(op: Op) -> Dims:
    """matmul, mm, bmm: the last dim of the left is summed with the last but one of the right."""
    a, b = _operands(op)
    a_dims, b_dims = op.dims_of(a), op.dims_of(b)
    op.unify(a_dims[-1], b_dims[-2] if len(b_dims) > 1 else b_dims[0])
    batch = _broadcast(op, a_dims[:-2], b_dims[:-2])
    rows = a_dims[-2:-1] if len(a_dims) > 1 else ()
    columns = b_dims[-1:] if len(b_dims) > 1 else ()
    op.memo.update(into=a_dims[-1], out=multiply(*columns))
    return (*batch, *rows, *columns)


def _operands(op: Op) -> tuple[Any, Any]:
    left, right = list(op.args)[:2]
    return op.args[left], op.args[right]


def _broadcast(op: Op, a: Dims, b: Dims) -> Dims:
    from paretoprune.graph.rules.pointwise import broadcast

    return broadcast(op, [a, b])


def matrix_product_dead(view: DeadView) -> State:
    """Batches (heads) are zero where either side is, rows where the left is, columns where the right is."""
    values = _operands(view.op)
    a, b = (len(view.op.dims_of(v)) for v in values)
    batches = [tuple(f".{i}" for i in range(2 - n, 0)) for n in (a, b)]
    left = (*batches[0], "row", "sum") if a > 1 else ("sum",)
    right = (*batches[1], "sum", "column") if b > 1 else ("sum",)
    out = (*max(batches, key=len), "row", "column")
    return product_state(view, Product(values, (left, right), out))


def matrix_product_macs(op: Op) -> list[MacTerm]:
    a, _ = _operands(op)
    return [(1, (*op.out, op.dims_of(a)[-1]))]


def addmm(op: Op) -> Dims:
    a, b, bias = op.dims_of(op.args["mat1"]), op.dims_of(op.args["mat2"]), op.dims_of(op.args["self"])
    op.unify(a[1], b[0])
    if bias and bias[-1].size == b[1].size:
        op.unify(bias[-1], b[1])
    if len(bias) == 2:
        op.freeze(bias[0], "it is added to a whole matrix")
    op.memo.update(into=a[1], out=b[1])
    return (a[0], b[1])


def addmm_dead(view: DeadView) -> State:
    op = view.op
    a, b, bias = op.args["mat1"], op.args["mat2"], op.args["self"]
    view_contraction(view, a, op.dims_of(a)[1:], b)
    column = view.contains(op.dims_of(b)[1]) and view.state(b) == State.ZERO and view.state(bias) == State.ZERO
    return State.ZERO if column else State.UNKNOWN


def addmm_macs(op: Op) -> list[MacTerm]:
    return [(1, (*op.dims_of(op.args["mat1"]), op.dims_of(op.args["mat2"])[1]))]
