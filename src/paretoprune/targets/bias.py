"""Biases that take back what rounding weights does on average (Nagel et al. 2019, arXiv:1906.04721, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from paretoprune.targets.clean import TRANSPOSED
from paretoprune.targets.qdq import layout_of, rewritten, stored_weights, tensors_in
from paretoprune.targets.weights import parameter_of

Array = NDArray[Any]


def correct_biases(fp32: Path, int8: Path, feeds: Iterable[Mapping[str, Array]]) -> None:
    """Subtract (Wq − W) · mean(x) from the bias of every convolution and linear layer, in place.

    Means of x are over samples and positions of the feeds, borders not told apart.
    """
    source = onnx.load(str(fp32)).graph
    constants = {t.name: numpy_helper.to_array(t) for t in source.initializer}
    layers = {parameter_of(n.input[1]): n for n in source.node if _has_bias(n, constants)}
    rounded, known = stored_weights(int8), layout_of(int8, skip=True).biases
    layers = {w: n for w, n in layers.items() if w in rounded and parameter_of(n.input[2]) in known}
    if not layers:
        return
    means = _means(fp32, layers, feeds)
    biases: dict[str, Array] = {}
    for weight, node in layers.items():
        error = rounded[weight] - _as_stored(node, constants)
        biases[parameter_of(node.input[2])] = constants[node.input[2]] - _shift(node, error, means[node.input[0]])
    onnx.save(rewritten(onnx.load(str(int8)), {}, {}, biases), str(int8))


def _has_bias(node: NodeProto, constants: Mapping[str, Array]) -> bool:
    return node.op_type in ("Conv", "Gemm") and len(node.input) > 2 and all(n in constants for n in node.input[1:3])


def _as_stored(node: NodeProto, constants: Mapping[str, Array]) -> Array:
    """(outputs, inputs, …) as the network has it."""
    weight = constants[node.input[1]]
    return weight.T if node.input[1].endswith(TRANSPOSED) else weight


def _means(fp32: Path, layers: Mapping[str, NodeProto], feeds: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
    """By tensor that enters a layer: the mean of each channel."""
    wanted = {n.input[0]: n.op_type for n in layers.values()}
    sums, counts = dict[str, Array](), dict[str, int]()
    for feed in feeds:
        for name, value in tensors_in(fp32, wanted, feed).items():
            channel = 1 if wanted[name] == "Conv" else value.ndim - 1
            rest = tuple(i for i in range(value.ndim) if i != channel)
            sums[name] = sums.get(name, 0.0) + value.sum(axis=rest, dtype=np.float64)
            counts[name] = counts.get(name, 0) + value.size // value.shape[channel]
    return {name: total / counts[name] for name, total in sums.items()}


def _shift(node: NodeProto, error: Array, mean: Array) -> Array:
    """By output channel: what the rounding error adds on average."""
    summed = error.reshape(*error.shape[:2], -1).sum(axis=2)
    groups = len(mean) // summed.shape[1]
    per_group = summed.reshape(groups, -1, summed.shape[1])
    shift: Array = np.einsum("goi,gi->go", per_group, mean.reshape(groups, -1)).reshape(-1)
    return shift
