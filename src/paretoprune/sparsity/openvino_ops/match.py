"""What stands around a layer in a graph of OpenVINO's, and can be computed with it: bias, residual, activation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretoprune.sparsity.kernels.layers import Activation

Node = Any
Output = Any
NEAR = 1e-6
"""Of sqrt(2) and such numbers in a file, relative."""


@dataclass(frozen=True)
class Around:
    """`last`: the node whose output the fused layer gives; `names`: of all nodes that it replaces."""

    last: Node
    names: tuple[str, ...]
    bias: NDArray[np.float32] | None
    residual: Output | None
    activation: Activation


def around(layer: Node, outputs: int, axis: int) -> Around:
    """`axis`: of the outputs in the layer's result, from the end: −1, of images −3."""
    last, names = layer, [layer.get_friendly_name()]

    def take(node: Node) -> None:
        nonlocal last
        last = node
        names.append(node.get_friendly_name())

    if (node := _only_user(last, "Multiply")) is not None and _number(_other(node, last)) == 1:
        take(node)  # Gemm's alpha
    bias, residual = None, None
    activation: Activation = "none"
    if (node := _only_user(last, "Add")) is not None:
        bias = _per_output(_other(node, last), outputs, axis) if _keeps_rank(node, last) else None
        if bias is not None:
            take(node)
    if (node := _only_user(last, "Add")) is not None and _alike(_other(node, last), last):
        residual = _other(node, last)
        take(node)
    if (node := _only_user(last, "Relu")) is not None:
        activation = "relu"
        take(node)
    elif gelu := _gelu(last):
        activation = "gelu"
        for node in gelu:
            take(node)
    return Around(last, tuple(names), bias, residual, activation)


def users(node: Node) -> list[Node]:
    """One for each input that reads it."""
    return [target.get_node() for target in node.output(0).get_target_inputs()]


def constant(output: Output) -> NDArray[Any] | None:
    node = output.get_node()
    return node.data if node.get_type_name() == "Constant" else None


def _only_user(node: Node, kind: str) -> Node | None:
    found = users(node)
    return found[0] if len(found) == 1 and found[0].get_type_name() == kind else None


def _other(node: Node, known: Node) -> Output:
    """The input of a node of two that is not `known`'s."""
    sources = [node.input_value(i) for i in (0, 1)]
    return sources[1] if sources[0].get_node() == known else sources[0]


def _number(output: Output) -> float:
    value = constant(output)
    return float(value.reshape(())) if value is not None and value.size == 1 else math.nan


def _per_output(output: Output, outputs: int, axis: int) -> NDArray[np.float32] | None:
    value = constant(output)
    fits = value is not None and value.dtype == np.float32 and value.size == outputs and value.ndim >= -axis
    if value is None or not fits or value.shape[axis] != outputs or not np.isfinite(value).all():
        return None
    return np.array(value.reshape(-1))


def _keeps_rank(node: Node, before: Node) -> bool:
    ranks = [each.get_output_partial_shape(0).rank for each in (node, before)]
    return all(rank.is_static for rank in ranks) and bool(ranks[0] == ranks[1])


def _alike(other: Output, node: Node) -> bool:
    """Of equal sizes, as far as they are known: the operator checks the rest with each call."""
    same: bool = other.get_partial_shape() == node.get_output_partial_shape(0)
    return same and other.get_element_type() == node.get_output_element_type(0)


def _gelu(node: Node) -> list[Node] | None:
    """Its nodes, the last one last: OpenVINO's own, or 0.5 x (1 + erf(x / sqrt 2)) as torch writes it to ONNX."""
    if (whole := _only_user(node, "Gelu")) is not None:
        return [whole] if whole.get_attributes().get("approximation_mode") == "ERF" else None
    if len(found := users(node)) != 2:
        return None
    scaled = next((user for user in found if _scales(user, node, 1 / math.sqrt(2))), None)
    if scaled is None or (erf := _only_user(scaled, "Erf")) is None:
        return None
    plus = _only_user(erf, "Add")
    if plus is None or _number(_other(plus, erf)) != 1 or (product := _only_user(plus, "Multiply")) is None:
        return None
    half = _only_user(product, "Multiply")
    if _other(product, plus).get_node() != node or half is None or _number(_other(half, product)) != 0.5:
        return None
    return [scaled, erf, plus, product, half]


def _scales(node: Node, x: Node, by: float) -> bool:
    if node.get_type_name() not in ("Divide", "Multiply") or node.input_value(0).get_node() != x:
        return False
    number = _number(node.input_value(1))
    return math.isclose(1 / number if node.get_type_name() == "Divide" else number, by, rel_tol=NEAR)
