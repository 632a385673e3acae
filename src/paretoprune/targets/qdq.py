"""What a file with quantize and dequantize pairs quantizes, and writing it anew with other weights and scales."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, numpy_helper

from paretoprune.core.errors import TargetError
from paretoprune.core.grid import Grid, Layout
from paretoprune.targets.clean import TRANSPOSED
from paretoprune.targets.session import RUNTIME_ERRORS, one_line, session_options
from paretoprune.targets.weights import parameter_of

_LIMITS: Mapping[Any, tuple[int, int]] = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}
_NAMES = (r"(.*)_quantized", r"q_output_(.*)_\d+")
"""What ONNX Runtime's quantizer and NNCF call a weight."""
_LAST = "_QuantizeLinear_Input"
"""What ONNX Runtime's quantizer calls an output of the network before it is quantized."""

Array = NDArray[Any]


def layout_of(path: Path, *, skip: bool = False) -> Layout:
    """Grids of the activations and weights that a file quantizes.

    Activations with a step for each channel, as NNCF gives them in front of depthwise convolutions, and weights with
    zero points are left out with `skip`; else they raise TargetError.
    """
    graph = onnx.load(str(path)).graph
    constants = _constants(graph)
    activations, weights = dict[str, Grid](), dict[str, Grid]()
    for node in graph.node:
        if skip and _beyond(node, constants):
            continue
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            activations[node.input[0].removesuffix(_LAST)] = _activation(node, constants)
        elif node.op_type == "DequantizeLinear" and constants.get(node.input[0], np.zeros(0)).dtype == np.int8:
            stored = _stored_name(node.input[0])
            weights[parameter_of(stored)] = _weight(node, constants, stored.endswith(TRANSPOSED))
    return Layout(activations, weights, _biases(graph, constants))


def _biases(graph: GraphProto, constants: Mapping[str, Array]) -> dict[str, tuple[str, str]]:
    makers = {output: node for node in graph.node for output in node.output}
    return {
        parameter_of(_stored_name(bias.input[0])): (x.input[1], parameter_of(_stored_name(weight.input[0])))
        for node in graph.node
        if (parts := _restored(node, makers)) is not None
        for x, weight, bias in [parts]
        if constants.get(bias.input[0], np.zeros(0)).dtype == np.int32
    }


def _beyond(node: NodeProto, constants: Mapping[str, Array]) -> bool:
    """Is it quantized in a way that a Grid does not know?"""
    if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
        return constants[node.input[1]].size != 1
    if node.op_type == "DequantizeLinear" and node.input[0] in constants and len(node.input) > 2:
        return bool(constants[node.input[2]].any())
    return False


def _restored(node: NodeProto, makers: Mapping[str, NodeProto]) -> tuple[NodeProto, NodeProto, NodeProto] | None:
    """What gives a layer its input, weight and bias, where all three are restored from whole numbers."""
    parts = [makers.get(name) for name in node.input[:3]]
    if len(parts) < 3 or any(part is None or part.op_type != "DequantizeLinear" for part in parts):
        return None
    x, weight, bias = (part for part in parts if part is not None)
    return x, weight, bias


def _constants(graph: GraphProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer}


def _stored_name(name: str) -> str:
    found = next((m for pattern in _NAMES if (m := re.fullmatch(pattern, name))), None)
    return name if found is None else found[1]


def _activation(node: NodeProto, constants: Mapping[str, Array]) -> Grid:
    scale, zero = (constants[name] for name in node.input[1:3])
    if scale.size != 1:
        raise TargetError(f"{node.input[0]} is quantized by channel, which is not known of activations here")
    return Grid(node.input[1], scale.reshape(()), int(zero.reshape(())), *_LIMITS[zero.dtype])


def _weight(node: NodeProto, constants: Mapping[str, Array], transposed: bool) -> Grid:
    whole, scale = constants[node.input[0]], constants[node.input[1]]
    zero = constants[node.input[2]] if len(node.input) > 2 else np.zeros(1)
    if zero.any():
        raise TargetError(f"{node.input[0]} has zero points, which are not known of weights here")
    axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 1)
    high = int(np.abs(whole.astype(np.int16)).max())
    along = None if scale.ndim == 0 else (whole.ndim - 1 - axis if transposed else axis % whole.ndim)
    return Grid(node.input[1], scale, 0, -high, high, along)


def stored_weights(path: Path) -> dict[str, Array]:
    """What the layers compute with, by parameter and in its shape."""
    graph = onnx.load(str(path)).graph
    constants, found = _constants(graph), dict[str, Array]()
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and constants.get(node.input[0], np.zeros(0)).dtype == np.int8:
            stored, whole, scale = _stored_name(node.input[0]), constants[node.input[0]], constants[node.input[1]]
            axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 1)
            shape = [1] * whole.ndim
            if scale.ndim:
                shape[axis] = -1
            value = whole.astype(np.float32) * scale.reshape(shape)
            found[parameter_of(stored)] = value.T if stored.endswith(TRANSPOSED) else value
    return found


def biases_of(path: Path) -> dict[str, NDArray[np.float32]]:
    """Constants of fp32 in a file, by name: NNCF has corrected the biases among them."""
    return {n: v for n, v in _constants(onnx.load(str(path)).graph).items() if v.dtype == np.float32 and v.ndim == 1}


def tensors_in(path: Path, names: Iterable[str], feed: Mapping[str, Array]) -> dict[str, Array]:
    """What a file computes inside, for those of `names` that it has; its inputs too."""
    model = onnx.load(str(path))
    made = {output for node in model.graph.node for output in node.output}
    inside = [name for name in dict.fromkeys(names) if name in made]
    del model.graph.output[:]
    model.graph.output.extend(ValueInfoProto(name=name) for name in inside)
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), session_options(1, optimize=False), providers=["CPUExecutionProvider"]
        )
        values = session.run(inside, dict(feed))
    except RUNTIME_ERRORS as error:
        raise TargetError(f"the tensors inside {path.name} cannot be read: {one_line(error)}") from error
    return {**{n: v for n, v in feed.items() if n in set(names)}, **dict(zip(inside, values, strict=True))}


def rewritten(
    model: ModelProto,
    scales: Mapping[str, float],
    weights: Mapping[str, tuple[Array, Array]],
    biases: Mapping[str, Array],
) -> ModelProto:
    """A copy with other numbers. `scales` by grid; `weights`: (whole numbers, scale), and `biases`, by parameter.

    A bias in whole numbers gets the scale that its layer's input and weight now have.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    values = _constants(graph)
    values |= {name: np.asarray(scale, np.float32) for name, scale in scales.items() if name in values}
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and values.get(node.input[0], np.zeros(0)).dtype == np.int8:
            stored = _stored_name(node.input[0])
            if (given := weights.get(parameter_of(stored))) is not None:
                whole = given[0].T if stored.endswith(TRANSPOSED) else given[0]
                values[node.input[0]] = np.ascontiguousarray(whole).astype(np.int8)
                values[node.input[1]] = given[1].astype(np.float32).reshape(values[node.input[1]].shape)
    for node in graph.node:
        for source in node.input:
            if source in biases and source in values:
                values[source] = biases[source].astype(values[source].dtype).reshape(values[source].shape)
        _whole_bias(node, makers, values, biases)
    for tensor in graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return result


def _whole_bias(
    node: NodeProto, makers: Mapping[str, NodeProto], values: dict[str, Array], biases: Mapping[str, Array]
) -> None:
    if (parts := _restored(node, makers)) is None:
        return
    x, weight, bias = parts
    if values.get(bias.input[0], np.zeros(0)).dtype != np.int32:
        return
    old = values[bias.input[0]].astype(np.float64) * values[bias.input[1]]
    given = biases.get(parameter_of(_stored_name(bias.input[0])), old)
    scale = (values[x.input[1]] * values[weight.input[1]]).astype(np.float32).reshape(values[bias.input[1]].shape)
    limits = np.iinfo(np.int32)
    whole = np.clip(np.rint(given.astype(np.float64) / scale), limits.min, limits.max)
    values[bias.input[0]], values[bias.input[1]] = whole.astype(np.int32), scale
