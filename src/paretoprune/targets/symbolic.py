"""Operators that torch's exporter to ONNX does not know, written with those that it knows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.onnx import symbolic_helper as helper


@contextlib.contextmanager
def known_operators(opset: int) -> Iterator[None]:
    """Inside, the exporter knows these too, and transformer layers run operator by operator."""
    fast = torch.backends.mha.get_fastpath_enabled()
    for name, symbolic in SYMBOLIC.items():
        torch.onnx.register_custom_op_symbolic(name, symbolic, opset)  # type: ignore[attr-defined]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for name in SYMBOLIC:
            torch.onnx.unregister_custom_op_symbolic(name, opset)  # type: ignore[attr-defined]


@helper.parse_args("v", "is", "v", "v")
def rms_norm(g: Any, x: Any, shape: list[int], weight: Any, eps: Any) -> Any:
    """x / sqrt(mean(x²) + ε) · weight over the last dimensions (Zhang and Sennrich 2019, eq. 4)."""
    given = helper._maybe_get_const(eps, "f")
    value = torch.finfo(torch.float32).eps if helper._is_none(eps) else float(given)
    axes = [-1 - i for i in range(len(shape))]
    mean = g.op("ReduceMean", g.op("Mul", x, x), axes_i=axes, keepdims_i=1)
    root = g.op("Sqrt", g.op("Add", mean, g.op("Constant", value_t=torch.tensor(value))))
    normal = g.op("Div", x, root)
    return normal if helper._is_none(weight) else g.op("Mul", normal, weight)


@helper.parse_args("v", "i")
def channel_shuffle(g: Any, x: Any, groups: int) -> Any:
    channels = helper._get_tensor_dim_size(x, 1)
    if channels is None:
        raise ValueError("channel_shuffle of an unknown number of channels")
    parts = g.op("Constant", value_t=torch.tensor([0, groups, channels // groups, -1]))
    shuffled = g.op("Transpose", g.op("Reshape", x, parts), perm_i=[0, 2, 1, 3])
    return g.op("Reshape", shuffled, g.op("Shape", x))


@helper.parse_args("v", "i", "i", "v", "v")
def diff(g: Any, x: Any, times: int, dim: int, before: Any, after: Any) -> Any:
    parts = [v for v in (before, x, after) if not helper._is_none(v)]
    joined = g.op("Concat", *parts, axis_i=dim) if len(parts) > 1 else x

    def cut(value: Any, start: int, end: int) -> Any:
        ends = [g.op("Constant", value_t=torch.tensor([n])) for n in (start, end, dim)]
        return g.op("Slice", value, *ends)

    for _ in range(times):
        joined = g.op("Sub", cut(joined, 1, 2**62), cut(joined, 0, -1))
    return joined


@helper.parse_args("v", "i", "v")
def cumsum(g: Any, x: Any, dim: int, dtype: Any) -> Any:
    """The exporter's own leaves booleans as they are, which ONNX does not add up."""
    if not helper._is_none(dtype):
        number = helper._get_const(dtype, "i", "dtype")  # type: ignore[no-untyped-call]
        x = g.op("Cast", x, to_i=_ONNX_TYPES[number])
    elif x.type().scalarType() == "Bool":
        x = g.op("Cast", x, to_i=_INT64)
    return g.op("CumSum", x, g.op("Constant", value_t=torch.tensor(dim)))


def _packed(operator: str) -> Callable[..., Any]:
    """A layer on a packed weight; other runtimes do not know it. See `targets.sparse_cpu`."""

    def symbolic(g: Any, x: Any, *given: Any) -> Any:
        value, at, scale, pattern, coding, shape, bias, residual, activation, grid, *window = given
        words = {
            "pattern_s": helper._get_const(pattern, "s", "pattern"),  # type: ignore[no-untyped-call]
            "coding_s": helper._get_const(coding, "s", "coding"),  # type: ignore[no-untyped-call]
            "activation_s": helper._get_const(activation, "s", "activation"),  # type: ignore[no-untyped-call]
            "shape_i": helper._get_const(shape, "is", "shape"),  # type: ignore[no-untyped-call]
        }
        if numbers := helper._get_const(grid, "fs", "grid"):  # type: ignore[no-untyped-call]
            words["grid_f"] = numbers
        rank = 4
        if len(window) == 1:
            rank = helper._get_const(window[0], "i", "rank")  # type: ignore[no-untyped-call]
        else:
            for name, pair in zip(("stride_i", "padding_i"), window, strict=True):
                words[name] = helper._get_const(pair, "is", name)  # type: ignore[no-untyped-call]
        made = g.op(f"paretoprune::{operator}", x, value, at, scale, bias, residual, **words)
        made.setType(x.type().with_sizes(_packed_sizes(x.type().sizes() or [None] * rank, words)))
        return made

    return symbolic


def _packed_sizes(x: list[int | None], words: dict[str, Any]) -> list[int | None]:
    shape: list[int] = words["shape_i"]
    outputs, kernel = shape[0], shape[2:]
    if not kernel:
        return [*x[:-1], outputs]
    window = zip(x[2:], kernel, words["stride_i"], words["padding_i"], strict=True)
    return [x[0], outputs, *(None if n is None else (n + 2 * p - k) // s + 1 for n, k, s, p in window)]


_INT64 = 7
_ONNX_TYPES = {0: 2, 1: 3, 2: 5, 3: 6, 4: _INT64, 5: 10, 6: 1, 7: 11}
"""torch's numbers of types (c10/core/ScalarType.h) and ONNX's (TensorProto.DataType)."""
SYMBOLIC: dict[str, Callable[..., Any]] = {
    "aten::rms_norm": rms_norm,
    "aten::channel_shuffle": channel_shuffle,
    "aten::diff": diff,
    "aten::cumsum": cumsum,
    "paretoprune::sparse_linear": _packed("SparseLinear"),
    "paretoprune::sparse_conv": _packed("SparseConv"),
}
