"""ONNX files with packed layers, read by OpenVINO: each layer becomes our operator as the file is read."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretoprune.core.errors import FileError, PruneError, TargetError
from paretoprune.sparsity.kernels.layers import ACTIVATIONS
from paretoprune.sparsity.kernels.library import SETS
from paretoprune.sparsity.openvino_ops.build import openvino, ready
from paretoprune.sparsity.openvino_ops.replace import laid_out
from paretoprune.sparsity.packing import Packed, PackedSigns, pack, unpack_signs
from paretoprune.sparsity.parts import SIGNS, weight_of_parts
from paretoprune.sparsity.patterns import Block

DOMAIN = "paretoprune"
KINDS = ("SparseLinear", "SparseConv")
INPUTS = ("x", "value", "at", "scale", "bias", "residual")
"""Of both kinds, by position; scale, bias and residual may be missing."""


def read(data: bytes, name: str, threads: int = 1, instruction_set: str | None = None) -> Any:
    """The openvino.Model of an ONNX file. Raises FileError for damaged layers, TargetError for those in 8 bits."""
    path, chosen = ready(instruction_set)
    factory = importlib.import_module("openvino.utils.node_factory").NodeFactory()
    factory.add_extension(str(path))
    core, failed = openvino().Core(), list[PruneError]()
    extension = importlib.import_module("openvino.frontend.onnx").ConversionExtension
    for kind in KINDS:
        core.add_extension(extension(kind, DOMAIN, _converter(kind, factory, threads, chosen, failed)))
    try:
        return core.read_model(data)
    except RuntimeError:
        if not failed:
            raise
        error = failed[0]
        kept = error if isinstance(error, TargetError) else FileError(f"{name}: {error}; export it again")
        raise kept from error


def _converter(
    kind: str, factory: Any, threads: int, instruction_set: str, failed: list[PruneError]
) -> Callable[[Any], list[Any]]:
    """`failed`: what went wrong in our own words; OpenVINO tells it in its own."""

    def convert(node: Any) -> list[Any]:
        try:
            return _operator(node, kind, factory, threads, instruction_set).outputs()  # type: ignore[no-any-return]
        except PruneError as error:
            failed.append(error)
            raise
        except Exception as error:
            said = str(error).strip().splitlines()[-1:] or [repr(error)]
            failed.append(FileError(f"a packed layer is damaged ({said[0]})"))
            raise

    return convert


def _operator(node: Any, kind: str, factory: Any, threads: int, instruction_set: str) -> Any:
    inputs = _inputs(node)
    weight, bias = _weight(node, inputs), _constant(inputs.get("bias"))
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != np.float32 or not np.isfinite(bias).all()):
        raise FileError(f"a bias of {bias.dtype} {bias.shape} for {weight.shape[0]} outputs")
    if len(weight.shape) != (4 if kind == "SparseConv" else 2):
        raise FileError(f"{kind} with a weight of shape {weight.shape}")
    blob, about = laid_out(weight, bias, instruction_set)
    given: dict[str, Any] = {**about, "set": SETS.index(instruction_set), "threads": threads}
    given["activation"] = ACTIVATIONS.index(node.get_attribute("activation"))
    if kind == "SparseConv":
        padding = list(node.get_attribute("padding"))
        given["window"] = [int(n) for n in (*weight.shape[2:], *node.get_attribute("stride"), *padding, *padding)]
    sources = [inputs["x"], openvino().op.Constant(blob, shared_memory=True).output(0)]
    sources += [inputs["residual"]] if "residual" in inputs else []
    return factory.create(kind, sources, given)


def _inputs(node: Any) -> dict[str, Any]:
    found = {name: node.get_input(at) for at, name in enumerate(INPUTS[: node.get_input_size()])}
    return {name: output for name, output in found.items() if output.get_node().get_type_name() != "NullNode"}


def _weight(node: Any, inputs: dict[str, Any]) -> Packed:
    if node.has_attribute("grid") and len(node.get_attribute("grid")):
        raise TargetError("OpenVINO has no operator of ours for layers in 8 bits: use target='sparse-cpu'")
    value, at = _constant(inputs["value"]), _constant(inputs["at"])
    if value is None or at is None:
        raise FileError("a packed layer whose weight is no constant")
    pattern, shape = node.get_attribute("pattern"), tuple(node.get_attribute("shape"))
    value = value.view(np.uint32) if pattern == SIGNS else value
    found = weight_of_parts(pattern, node.get_attribute("coding"), shape, value, at, _constant(inputs.get("scale")))
    if isinstance(found, PackedSigns):
        return pack(unpack_signs(found), Block(16, 1))
    if found.value.dtype != np.float32:
        raise TargetError(
            f"OpenVINO has no operator of ours for weights of {found.value.dtype}: use target='sparse-cpu'"
        )
    return found


def _constant(output: Any) -> NDArray[Any] | None:
    if output is None or output.get_node().get_type_name() != "Constant":
        return None
    return np.array(output.get_node().data)
