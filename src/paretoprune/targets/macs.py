"""Work in an ONNX file: multiply-accumulates and bytes of its contractions, from shapes inferred at batch 1.

Zeros of a packed layer count as multiply-accumulates like other weights; its bytes are those that are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from paretoprune.targets.onnx_file import precision_of, read_model
from paretoprune.targets.sparse_twin import DENSE, dense_twin, packed_bytes

Shape = tuple[int, ...]

INT8_SOURCES = ("DequantizeLinear",)
"""A layer computes in 8 bits where all that it reads, its bias too, comes from these."""
RESTORING = ("DequantizeLinear", "Cast")
"""What gives a weight that is stored in fewer bits back to a layer that computes in fp32."""

OPAQUE = frozenset(
    {
        "LSTM",
        "DynamicQuantizeLSTM",
        "GRU",
        "RNN",
        "Einsum",
        "Attention",
        "GroupQueryAttention",
        "MultiHeadAttention",
        "If",
        "Loop",
        "Scan",
    }
)
"""They hold multiply-accumulates that are not counted here, so a graph with one has no known count."""


@dataclass(frozen=True)
class Workload:
    """Of one inference at batch 1. MACs by precision; `weight_bytes` and `activation_bytes` as stored in it.

    Activation bytes: what enters and leaves each contraction. Element-wise work is not counted.
    """

    macs_by_precision: Mapping[str, int] = field(default_factory=dict)
    weight_bytes: int = 0
    activation_bytes: int = 0

    @property
    def macs(self) -> int:
        return sum(self.macs_by_precision.values())


@dataclass(frozen=True)
class _Contraction:
    """Which input is the weight, and the rule that counts: (shape of x, of the weight, of the result, node) -> MACs."""

    weight: int
    count: Callable[[Shape, Shape, Shape, NodeProto], int]
    precision: str = ""


def _conv(x: Shape, weight: Shape, y: Shape, node: NodeProto) -> int:
    return math.prod(y) * math.prod(weight[1:])


def _conv_transpose(x: Shape, weight: Shape, y: Shape, node: NodeProto) -> int:
    return math.prod(x) * math.prod(weight[1:])


def _gemm(x: Shape, weight: Shape, y: Shape, node: NodeProto) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(y) * (x[0] if transposed else x[-1])


def _matmul(x: Shape, weight: Shape, y: Shape, node: NodeProto) -> int:
    return math.prod(y) * x[-1]


CONTRACTIONS: Mapping[str, _Contraction] = {
    "Conv": _Contraction(1, _conv),
    "ConvTranspose": _Contraction(1, _conv_transpose),
    "Gemm": _Contraction(1, _gemm),
    "MatMul": _Contraction(1, _matmul),
    "ConvInteger": _Contraction(1, _conv, "int8"),
    "MatMulInteger": _Contraction(1, _matmul, "int8"),
    "QLinearConv": _Contraction(3, _conv, "int8"),
    "QLinearMatMul": _Contraction(3, _matmul, "int8"),
}


def macs_of_file(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> int | None:
    """Multiply-accumulates of one sample, or None where a shape or an operator's work is not known."""
    workload = workload_of_file(path, shapes)
    return None if workload is None else workload.macs


def workload_of_file(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> Workload | None:
    """`shapes` of the inputs by name, for files with more dynamic dimensions than the batch; dimension 0 becomes 1."""
    return workload_of(read_model(path)[0], shapes)


def workload_of(model: ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> Workload | None:
    packed = packed_bytes(model)
    inferred = _inferred(dense_twin(model) if packed else model, shapes or {})
    if inferred is None:
        return None
    graph = inferred.graph
    if any(node.op_type in OPAQUE for node in graph.node):
        return None
    known = _shapes(graph)
    makers = {name: node for node in graph.node for name in node.output}
    types = {t.name: t.data_type for t in graph.initializer}
    computed = "bf16" if precision_of(model) == "bf16" else "fp32"
    macs: dict[str, int] = {}
    weight_bytes = activation_bytes = 0
    for node in graph.node:
        rule = CONTRACTIONS.get(node.op_type)
        if rule is None:
            continue
        names = (node.input[0], node.input[rule.weight], node.output[0])
        if any(name not in known for name in names):
            return None
        x, weight, y = (known[name] for name in names)
        whole = all(name in makers and makers[name].op_type in INT8_SOURCES for name in node.input if name)
        precision = rule.precision or ("int8" if whole else computed)
        width = 1 if precision == "int8" else 4
        macs[precision] = macs.get(precision, 0) + rule.count(x, weight, y, node)
        stored = _stored_width(names[1], makers, types, width) * math.prod(weight)
        weight_bytes += packed.get(names[1], stored)
        activation_bytes += width * (math.prod(x) + math.prod(y))
    return Workload(macs, weight_bytes, activation_bytes)


def _stored_width(name: str, makers: Mapping[str, NodeProto], types: Mapping[str, int], width: int) -> int:
    """Bytes of a weight's value in the file; `width` where it is computed there."""
    maker = makers.get(name)
    if maker is not None and maker.op_type in RESTORING:
        name = maker.input[0]
    return onnx.helper.tensor_dtype_to_np_dtype(types[name]).itemsize if name in types else width


def _inferred(model: ModelProto, shapes: Mapping[str, Sequence[int]]) -> ModelProto | None:
    """A copy at batch 1 with every shape that ONNX can infer, stored ones dropped; None if they clash."""
    fixed = ModelProto()
    fixed.CopyFrom(model)
    constants = {tensor.name for tensor in fixed.graph.initializer}
    for value in fixed.graph.input:
        if value.name not in constants and not value.name.endswith(DENSE):
            _set_shape(value, shapes.get(value.name))
    for output in fixed.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):
        return None


def _set_shape(value: ValueInfoProto, shape: Sequence[int] | None) -> None:
    dims = value.type.tensor_type.shape.dim
    if shape is not None and len(shape) == len(dims):
        for dim, size in zip(dims, shape, strict=True):
            dim.dim_value = int(size)
    if len(dims):
        dims[0].dim_value = 1


def _shapes(graph: GraphProto) -> dict[str, Shape]:
    """Fully known shapes by tensor name."""
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes.setdefault(value.name, tuple(dim.dim_value for dim in tensor.shape.dim))
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    shapes.setdefault(node.output[0], tuple(attribute.t.dims))
    return shapes
