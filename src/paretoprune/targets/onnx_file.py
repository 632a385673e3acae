"""Reading ONNX files with suspicion: nothing outside the file's own folder is ever opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from paretoprune.core.errors import FileError, UsageError


def read_model(path: Path) -> tuple[ModelProto, bytes]:
    """(model without external tensors loaded, bytes of the file).

    Raises FileError for a missing or unreadable file, and for external data that points outside its folder.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}; give the path of an ONNX file") from error
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise FileError(f"{path} is not an ONNX file, or it is truncated ({error}); export it again") from error
    if not model.graph.node:
        raise FileError(f"{path} holds no ONNX graph; export it again")
    check_external_data(model, Path(path))
    return model, data


PRECISION = "paretoprune.precision"
"""Key of a file's metadata."""


def precision_of(model: ModelProto) -> str:
    """What the file was exported as; "fp32" where it does not say."""
    return next((str(p.value) for p in model.metadata_props if p.key == PRECISION), "fp32")


def example_feed(path: Path) -> dict[str, NDArray[Any]]:
    """One sample by input name, for a file whose sizes are fixed but for dimension 0: seeded noise, integers zero.

    Raises UsageError for a file with other open dimensions: which sizes are meant is the caller's to say.
    """
    graph = read_model(path)[0].graph
    constants, rng = {tensor.name for tensor in graph.initializer}, np.random.default_rng(0)
    feed: dict[str, NDArray[Any]] = {}
    for value in graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        sizes = [dim.dim_value for dim in tensor.shape.dim]
        if not tensor.HasField("shape") or any(size < 1 for size in sizes[1:]):
            raise UsageError(f"{path}: the size of input {value.name!r} is open beyond the batch; give an example")
        shape, dtype = [1, *sizes[1:]][: len(sizes)], onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        noise = np.issubdtype(dtype, np.floating)
        feed[value.name] = rng.standard_normal(shape).astype(dtype) if noise else np.zeros(shape, dtype)
    return feed


def check_external_data(model: ModelProto, path: Path) -> None:
    """Refuse external tensors that are absolute, climb out of the folder, or follow a link out of it."""
    folder = path.resolve().parent
    for tensor in tensors_of(model):
        for location in external_locations(tensor):
            inside = location and not Path(location).is_absolute()
            if not inside or not (folder / location).resolve().is_relative_to(folder):
                raise FileError(
                    f"{path}: tensor {tensor.name!r} is stored in {location!r}, outside the file's folder {folder}; "
                    "such a file is not opened. Save it with its data inside"
                )


def has_external_data(model: ModelProto) -> bool:
    return any(external_locations(tensor) for tensor in tensors_of(model))


def external_locations(tensor: TensorProto) -> tuple[str, ...]:
    """Every place that a tensor claims its bytes are at; empty if they are in the file itself, ("",) if none is named.

    All of them: readers differ in which of two entries they follow.
    """
    if tensor.data_location != TensorProto.EXTERNAL and not tensor.external_data:
        return ()
    return tuple(entry.value for entry in tensor.external_data if entry.key == "location") or ("",)


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: initializers, constants, subgraphs, functions, training parts."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from _sparse_tensors(sparse)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from _sparse_tensors(sparse)
    if attribute.HasField("g"):
        yield from _graph_tensors(attribute.g)
    for graph in attribute.graphs:
        yield from _graph_tensors(graph)


def _sparse_tensors(sparse: SparseTensorProto) -> Iterator[TensorProto]:
    yield sparse.values
    yield sparse.indices
