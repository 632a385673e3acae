"""A network of OpenVINO's in which layers with packed weights are our operators; all the rest stays that runtime's."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretoprune.core.errors import UsageError
from paretoprune.sparsity.kernels.layers import ACTIVATIONS, MOST_THREADS
from paretoprune.sparsity.kernels.library import SETS, library
from paretoprune.sparsity.kernels.structs import Rows, rows_of
from paretoprune.sparsity.openvino_ops.build import openvino, ready
from paretoprune.sparsity.openvino_ops.match import Around, Node, around, users
from paretoprune.sparsity.packing import Packed, unpack

LINE = 64
"""Bytes to which each part of an operator's constant is filled up (extension.cpp)."""


@dataclass(frozen=True)
class Replaced:
    """`model`: a copy of the given one. `layers`: node name -> names of all nodes that became one. `left`: why not.

    `nodes`: weight -> names of the nodes of both kinds.
    """

    model: Any
    layers: Mapping[str, tuple[str, ...]]
    left: Mapping[str, str]
    nodes: Mapping[str, tuple[str, ...]]


def replace(
    model: Any,
    weights: Mapping[str, Packed],
    threads: int = 1,
    instruction_set: str | None = None,
) -> Replaced:
    """Layers of `model` (an openvino.Model, as read from an ONNX file) whose weight is packed, by our operators.

    `weights`: by the name of the initializer; (outputs, inputs…), also where the file holds a linear weight transposed.
    The constant in the model must be equal to what is packed. Bias, a residual of equal size, and ReLU or GELU that
    follow are computed with the layer. The result can be compiled by any Core of this process.
    Raises UsageError for a weight that the model lacks or holds differently, TargetError without kernels.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"threads={threads}: expected 1 to {MOST_THREADS}")
    path, name = ready(instruction_set)
    copy = model.clone()
    _fold(copy)
    factory = importlib.import_module("openvino.utils.node_factory").NodeFactory()
    factory.add_extension(str(path))
    found = {op.get_friendly_name(): op for op in copy.get_ops() if op.get_type_name() == "Constant"}
    maker, layers, left, nodes = _Maker(factory, threads, name), {}, {}, {}
    for key, packed in weights.items():
        if key not in found:
            raise UsageError(f"the network has no weight {key!r}; it has {', '.join(sorted(found))[:200]}")
        readers = users(found[key])
        nodes[key] = tuple(node.get_friendly_name() for node in readers)
        for label, node in zip(nodes[key], readers, strict=True):
            if why := _fault(node, found[key], key, packed):
                left[label] = why
            else:
                layers[label] = maker.replace(node, packed)
    copy.validate_nodes_and_infer_types()
    return Replaced(copy, layers, left, nodes)


class _Maker:
    def __init__(self, factory: Any, threads: int, instruction_set: str) -> None:
        self._factory, self._threads, self._set = factory, threads, instruction_set

    def replace(self, node: Node, packed: Packed) -> tuple[str, ...]:
        image = node.get_type_name() == "Convolution"
        found = around(node, packed.shape[0], -3 if image else -1)
        window = {"window": _window(node, packed)} if image else {}
        blob, about = laid_out(packed, found.bias, self._set)
        about |= {"activation": ACTIVATIONS.index(found.activation), "set": SETS.index(self._set)}
        inputs = [node.input_value(0), openvino().op.Constant(blob, shared_memory=True).output(0)]
        inputs += [] if found.residual is None else [found.residual]
        made = self._factory.create(
            "SparseConv" if image else "SparseLinear", inputs, {**about, **window, "threads": self._threads}
        )
        _put(found, made)
        return found.names


def _put(found: Around, made: Node) -> None:
    name = found.last.get_friendly_name()
    importlib.import_module("openvino.utils").replace_node(found.last, made)
    made.set_friendly_name(name)


def laid_out(packed: Packed, bias: NDArray[np.float32] | None, name: str) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """(the operator's constant, its attributes): what extension.cpp's About reads."""
    weights = rows_of(packed, library(name).pp_panel_bytes)
    rows, (start, index, value) = weights.struct, weights.arrays
    assert isinstance(rows, Rows)
    columns = int(start[-1])
    parts = [start, value[:columns], *([] if bias is None else [bias]), index[:columns]]
    at = np.cumsum([0, *(-(-part.nbytes // LINE) * LINE for part in parts)])
    whole = np.zeros(int(at[-1]) + LINE, np.uint8)
    blob = whole[-whole.__array_interface__["data"][0] % LINE :][: int(at[-1])]
    for part, begin in zip(parts, at, strict=False):
        blob[begin : begin + part.nbytes] = np.ascontiguousarray(part).view(np.uint8).ravel()
    about = {key: int(getattr(rows, key)) for key in ("outputs", "inputs", "height", "parts")}
    return blob, about | {"columns": columns, "biased": int(bias is not None)}


def _fold(model: Any) -> None:
    """Biases reach their Add through the shape of what they are added to, which is known."""
    passes = importlib.import_module("openvino.passes")
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)


def _fault(node: Node, weight: Node, key: str, packed: Packed) -> str | None:
    """Why a layer stays dense. Raises UsageError where the network's weight is another one."""
    kind, about = node.get_type_name(), node.get_attributes()
    if node.get_input_size() < 2 or node.input_value(1).get_node() != weight:
        return f"{kind} does not take it as its weight"
    if kind == "Convolution" and len(packed.shape) == 4:
        turned = False
    elif kind == "MatMul" and len(packed.shape) == 2:
        turned = not about["transpose_b"]
    else:
        return f"there is no operator for {kind} with a weight of shape {packed.shape}"
    dense = unpack(packed)
    if packed.value.dtype != np.float32 or not np.array_equal(weight.data, dense.T if turned else dense):
        raise UsageError(f"weight {key!r}: the network's is not what is packed; pack the weights of this network")
    if kind == "Convolution" and (set(about["dilations"]) != {1} or about["auto_pad"] not in ("explicit", "notset")):
        return f"a convolution with dilations {about['dilations']} and padding {about['auto_pad']!r}"
    if about.get("transpose_a"):
        return "its input is transposed"
    return None


def _window(node: Node, packed: Packed) -> list[int]:
    about = node.get_attributes()
    return [*packed.shape[2:], *about["strides"], *about["pads_begin"], *about["pads_end"]]
