"""One-layer ONNX models, built directly, to learn what a layer costs on a target."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from paretoprune.core.layers import LayerSpec

IR_VERSION = 8
OPSET = 17


def layer_model(spec: LayerSpec, copies: int = 1, precision: str = "fp32") -> ModelProto:
    """`copies` layers of the same shape side by side on one input "x", their results added.

    The extra cost of a second copy is what the layer costs inside a network: what happens once at the model's edges
    (layout changes, quantizing the input) cancels.
    """
    build = _Int8Builder(spec) if precision == "int8" and spec.kind != "conv_transpose" else _Builder(spec)
    source = build.entry()
    total = build.layer(source, 0)
    for number in range(1, copies):
        other = build.layer(source, number)
        total = build.leave(build.node("Add", total, other))
    return build.model(total)


class _Builder:
    """Collects nodes and weights of an fp32 model."""

    def __init__(self, spec: LayerSpec) -> None:
        self.spec = spec
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self._rng = np.random.default_rng(0)

    def entry(self) -> str:
        return "x"

    def leave(self, name: str) -> str:
        """What follows every result."""
        return name

    def layer(self, source: str, number: int) -> str:
        fan_in = max(1, math.prod(self.spec.weight_shape[1:]))
        weight = self._rng.standard_normal(self.spec.weight_shape).astype(np.float32) / math.sqrt(fan_in)
        bias = self._rng.standard_normal(self.spec.outputs).astype(np.float32) * 0.1
        inputs = (source, self.weight(f"w{number}", weight), self.bias(f"b{number}", bias))
        return self.leave(self.node(self._operator(), *inputs))

    def weight(self, name: str, value: NDArray[np.float32]) -> str:
        return self.constant(name, value)

    def bias(self, name: str, value: NDArray[np.float32]) -> str:
        return self.constant(name, value)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def _operator(self) -> str:
        return {"linear": "Gemm", "conv": "Conv", "conv_transpose": "ConvTranspose"}[self.spec.kind]

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        if op == "Gemm":
            attributes["transB"] = 1
        elif op in ("Conv", "ConvTranspose"):
            spec = self.spec
            attributes |= {"kernel_shape": spec.kernel, "strides": spec.stride, "dilations": spec.dilation}
            attributes |= {"pads": spec.padding * 2, "group": spec.groups}
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def model(self, output: str) -> ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(self.spec.input_shape))
        dims = [None] * len(self.spec.input_shape)
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, dims)
        graph = helper.make_graph(self.nodes, "layer", [x], [y], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


class _Int8Builder(_Builder):
    """The same with quantize/dequantize pairs: unsigned activations, signed weights per channel, 32-bit bias."""

    ACTIVATION_SCALE = 0.05

    def entry(self) -> str:
        return self.leave("x")

    def leave(self, name: str) -> str:
        pair = self._scale("a_scale", np.float32(self.ACTIVATION_SCALE)), self._scale("a_zero", np.uint8(128))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", name, *pair), *pair)

    def weight(self, name: str, value: NDArray[np.float32]) -> str:
        largest = np.abs(value).reshape(len(value), -1).max(axis=1)
        scale = (largest / 127).astype(np.float32)
        whole = np.rint(value / scale.reshape(-1, *[1] * (value.ndim - 1))).astype(np.int8)
        self._weight_scale = scale
        return self._dequantized(name, whole, scale)

    def bias(self, name: str, value: NDArray[np.float32]) -> str:
        scale = (self._weight_scale * self.ACTIVATION_SCALE).astype(np.float32)
        return self._dequantized(name, np.rint(value / scale).astype(np.int32), scale)

    def _dequantized(self, name: str, whole: NDArray[Any], scale: NDArray[np.float32]) -> str:
        zero = self.constant(f"{name}_zero", np.zeros(len(scale), whole.dtype))
        scale_name = self.constant(f"{name}_scale", scale)
        return self.node("DequantizeLinear", self.constant(name, whole), scale_name, zero, axis=0)

    def _scale(self, name: str, value: Any) -> str:
        if all(tensor.name != name for tensor in self.weights):
            self.constant(name, np.asarray(value))
        return name
