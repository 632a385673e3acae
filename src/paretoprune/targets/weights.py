"""The weights of an ONNX graph one by one: which layer each belongs to, and storing it in fewer bits.

What is stored so is restored to fp32 in front of its layer, by DequantizeLinear or Cast, so that any runtime reads it
and chooses itself when to do that: on loading, or with each inference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from paretoprune.core.errors import TargetError
from paretoprune.targets.clean import TRANSPOSED

LARGEST = 127
"""Symmetric: −128 is not used."""

_AT: Mapping[str, int] = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "LSTM": 1, "GRU": 1, "RNN": 1}
"""Which input is the weight. Of recurrent layers the weights of the hidden state are taken with it."""
_RECURRENT = ("LSTM", "GRU", "RNN")
_MOVES = ("Transpose", "DequantizeLinear", "Cast")


@dataclass(frozen=True)
class Weight:
    """`name`: of the initializer; `parameter`: of the network's parameter that it is, perhaps transposed.

    `axis`: output channels. `layers`: names of the nodes that read it. `looked_up`: they pick rows of it.
    """

    name: str
    parameter: str
    axis: int
    layers: tuple[str, ...]
    looked_up: bool


def parameter_of(name: str) -> str:
    """The network's parameter that an initializer is called after."""
    return re.sub(r":\d+$", "", name).removesuffix(TRANSPOSED)


def weights_of(graph: GraphProto) -> tuple[Weight, ...]:
    """Weights of linear, convolutional and recurrent layers and of embeddings, in the order of their first layer."""
    tensors = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) >= 2}
    found: dict[str, list[tuple[NodeProto, int]]] = {}
    moved = {n.output[0]: n.input[0] for n in graph.node if n.op_type in _MOVES}
    for node in graph.node:
        for at in _weight_inputs(node):
            name = node.input[at]
            source = moved.get(name, name)
            if source in tensors:
                axis = _axis(node, len(tensors[source].dims)) if source == name else 0
                found.setdefault(source, []).append((node, axis))
    return tuple(
        Weight(
            name,
            parameter_of(name),
            uses[0][1],
            tuple(dict.fromkeys(node.name for node, _ in uses)),
            all(node.op_type == "Gather" for node, _ in uses),
        )
        for name, uses in found.items()
    )


def _weight_inputs(node: NodeProto) -> tuple[int, ...]:
    if node.op_type == "Gather":
        return (0,) if _attribute(node, "axis", 0) == 0 else ()
    if node.op_type in _RECURRENT:
        return (1, 2)
    return (_AT[node.op_type],) if node.op_type in _AT else ()


def _axis(node: NodeProto, ndim: int) -> int:
    if node.op_type == "MatMul":
        return ndim - 1
    if node.op_type == "Gemm":
        return 0 if _attribute(node, "transB", 0) else 1
    return 1 if node.op_type in ("ConvTranspose", *_RECURRENT) else 0


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def rounded(value: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(whole numbers from −127 to 127, scale by channel): symmetric, the largest of each channel at the end.

    A channel of zeros has scale 1.
    """
    rest = tuple(i for i in range(value.ndim) if i != axis)
    largest = np.abs(value).max(axis=rest)
    scale = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    shape = [1] * value.ndim
    shape[axis] = -1
    return np.clip(np.rint(value / scale.reshape(shape)), -LARGEST, LARGEST).astype(np.int8), scale


def store(model: onnx.ModelProto, precisions: Mapping[str, str]) -> int:
    """Store weights in "int8-weights" or "fp16", as `precisions` says by initializer; others stay. How many were.

    Changes `model`. Raises TargetError for a weight that half precision cannot hold.
    """
    graph, done = model.graph, 0
    tensors = {t.name: t for t in graph.initializer}
    makers = {"int8-weights": _whole, "fp16": _half}
    for weight in weights_of(graph):
        make = makers.get(precisions.get(weight.name, ""))
        if make is not None:
            nodes, stored = make(graph, weight, numpy_helper.to_array(tensors[weight.name]))
            graph.initializer.remove(tensors[weight.name])
            graph.initializer.extend(stored)
            for node in reversed(nodes):
                graph.node.insert(0, node)
            done += 1
    return done


def _half(graph: GraphProto, weight: Weight, value: NDArray[np.float32]) -> tuple[list[NodeProto], list[TensorProto]]:
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    if not np.isfinite(half).all():
        raise TargetError(
            f"{weight.parameter} holds {np.abs(value).max():.3g}, half precision at most 65504: keep it in fp32, "
            f"bits={{{weight.parameter!r}: 'fp32'}}"
        )
    name = f"{weight.name}_fp16"
    cast = helper.make_node("Cast", [name], [weight.name], f"{weight.name}_Cast", to=TensorProto.FLOAT)
    return [cast], [numpy_helper.from_array(half, name)]


def _whole(graph: GraphProto, weight: Weight, value: NDArray[np.float32]) -> tuple[list[NodeProto], list[TensorProto]]:
    whole, scale = rounded(value, weight.axis)
    names = f"{weight.name}_quantized", f"{weight.name}_scale"
    if weight.looked_up:
        _pick(graph, weight.name, *names)
        scale = scale.reshape(-1, *[1] * (value.ndim - 1))
        return [], [numpy_helper.from_array(whole, names[0]), numpy_helper.from_array(scale, names[1])]
    restore = helper.make_node(
        "DequantizeLinear", list(names), [weight.name], f"{weight.name}_DequantizeLinear", axis=weight.axis
    )
    return [restore], [numpy_helper.from_array(whole, names[0]), numpy_helper.from_array(scale, names[1])]


def _pick(graph: GraphProto, table: str, whole: str, scale: str) -> None:
    """Rows are picked first and restored then: nobody wants the whole table in fp32."""
    for at, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "Gather" or node.input[0] != table:
            continue
        result, ids = node.output[0], node.input[1]
        parts = [f"{result}_{what}" for what in ("rows", "fp32", "row_scales")]  # "scale" is the quantizer's name
        nodes = [
            helper.make_node("Gather", [whole, ids], [parts[0]], f"{node.name}_rows", axis=0),
            helper.make_node("Cast", [parts[0]], [parts[1]], f"{node.name}_fp32", to=TensorProto.FLOAT),
            helper.make_node("Gather", [scale, ids], [parts[2]], f"{node.name}_row_scales", axis=0),
            helper.make_node("Mul", parts[1:], [result], f"{node.name}_Mul"),
        ]
        del graph.node[at]
        for new in reversed(nodes):
            graph.node.insert(at, new)
