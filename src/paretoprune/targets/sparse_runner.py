"""A loaded file with packed layers: dense parts as sessions of ONNX Runtime, and kernels between them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference

from paretoprune.core.errors import DataError, FileError, PruneError, TargetError
from paretoprune.targets.onnx_file import has_external_data, read_model
from paretoprune.targets.session import RUNTIME_ERRORS, one_line, refused, session_options
from paretoprune.targets.sparse_cpu import CONV, DOMAIN, LINEAR, Kernel, LayerParts, Packing

Array = NDArray[Any]
_FAILURES: tuple[type[Exception], ...] = (*RUNTIME_ERRORS, DataError)
INPUTS = ("x", "value", "at", "scale", "bias", "residual")
"""Of both operators, by position; scale, bias and residual may be missing."""


@dataclass
class _Sparse:
    kernel: Kernel
    x: str
    residual: str
    output: str
    shapes: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)
    """By input shape, once seen: the output's."""


@dataclass
class _Dense:
    session: onnxruntime.InferenceSession
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class SparseRunner:
    """Implements core.protocols.Runner. One call at a time: results between layers lie in memory that is kept."""

    def __init__(self, model: ModelProto, packing: Packing, threads: int, name: str) -> None:
        self._name = name
        constants = {t.name for t in model.graph.initializer}
        self.input_names: tuple[str, ...] = tuple(v.name for v in model.graph.input if v.name not in constants)
        self.output_names: tuple[str, ...] = tuple(v.name for v in model.graph.output)
        self._steps = _steps(model, packing, threads, name)
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = 4
        self._last = _last_uses(self._steps, self.output_names)
        self._free: dict[tuple[int, ...], list[Array]] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, packing: Packing, threads: int) -> SparseRunner:
        model, _ = read_model(path)
        if has_external_data(model):
            raise FileError(f"{path} keeps tensors outside itself, which files of target 'sparse-cpu' never do")
        return cls(model, packing, threads, str(path))

    def __call__(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        if inputs.keys() != set(self.input_names):
            raise TargetError(
                f"{self._name} takes the inputs {', '.join(self.input_names)}; given were {', '.join(inputs) or 'none'}"
            )
        try:
            with self._lock:
                return self._run(dict(inputs))
        except _FAILURES as error:
            shapes = ", ".join(f"{name} {tuple(np.shape(value))}" for name, value in inputs.items())
            raise TargetError(f"{self._name} does not run on {shapes}: {one_line(error)}") from error

    def _run(self, values: dict[str, Array]) -> tuple[Array, ...]:
        ours: set[str] = set()
        for number, step in enumerate(self._steps):
            if isinstance(step, _Dense):
                feed = {name: values[name] for name in step.inputs}
                values.update(zip(step.outputs, step.session.run(step.outputs, feed, self._options), strict=True))
            else:
                values[step.output] = self._layer(step, values)
                ours.add(step.output)
            for name in self._last[number]:
                array = values.pop(name)
                if name in ours:
                    self._free.setdefault(array.shape, []).append(array)
        return tuple(values[name] for name in self.output_names)

    def _layer(self, step: _Sparse, values: Mapping[str, Array]) -> Array:
        x = np.ascontiguousarray(values[step.x])
        residual = np.ascontiguousarray(values[step.residual]) if step.residual else None
        shape = step.shapes.get(x.shape)
        free = self._free.get(shape) if shape is not None else None
        y = step.kernel(x, residual, free.pop() if free else None)
        step.shapes[x.shape] = y.shape
        return y


def _last_uses(steps: Sequence[_Dense | _Sparse], kept: Sequence[str]) -> list[list[str]]:
    """By step: what nobody reads after it."""
    seen, found = set(kept), list[list[str]]()
    for step in reversed(steps):
        names = {*step.inputs, *step.outputs} if isinstance(step, _Dense) else {step.x, step.residual, step.output}
        found.append(sorted(names - seen - {""}))
        seen |= names
    return found[::-1]


def _steps(model: ModelProto, packing: Packing, threads: int, name: str) -> list[_Dense | _Sparse]:
    constants = {t.name: t for t in model.graph.initializer}
    if unknown := [n.op_type for n in model.graph.node if n.domain == DOMAIN and n.op_type not in (LINEAR, CONV)]:
        raise FileError(f"{name} holds operators {', '.join(sorted(set(unknown)))} of a newer version: upgrade")
    known = {v.name for v in model.graph.input} | set(constants) | {""}
    types, steps, left = _types(model), list[_Dense | _Sparse](), list(model.graph.node)
    readers = Counter(i for n in model.graph.node for i in reads(n))
    readers.update(v.name for v in model.graph.output)
    while left:
        dense = _ready(left, known, sparse=False)
        if dense:
            steps.append(_part(model, dense, constants, types, readers, threads, name))
        packed = _ready(left, known, sparse=True)
        steps += [_kernel(node, constants, packing, threads, name) for node in packed]
        if not dense and not packed:
            raise FileError(f"{name}: its nodes do not follow each other; export it again")
    return steps


def _ready(left: list[NodeProto], known: set[str], sparse: bool) -> list[NodeProto]:
    """Takes from `left` the nodes that can run, one after the other, and adds to `known` what they give."""
    found, rest = list[NodeProto](), list[NodeProto]()
    for node in left:
        fits = (node.domain == DOMAIN) == sparse and known.issuperset(reads(node))
        (found if fits else rest).append(node)
        if fits:
            known.update(node.output)
    left[:] = rest
    return found


def reads(node: NodeProto) -> set[str]:
    """Names from outside: also those that subgraphs read."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            inside = {o for n in graph.node for o in n.output} | {t.name for t in graph.initializer}
            inside |= {v.name for v in graph.input}
            outer = {name for n in graph.node for name in reads(n)} | {o.name for o in graph.output}
            names |= outer - inside
    return names


def _part(
    model: ModelProto,
    nodes: Sequence[NodeProto],
    constants: Mapping[str, Any],
    types: Mapping[str, Any],
    readers: Counter[str],
    threads: int,
    name: str,
) -> _Dense:
    made = [o for n in nodes for o in n.output if o]
    read = list(dict.fromkeys(i for n in nodes for i in sorted(reads(n))))
    inside = Counter(i for n in nodes for i in reads(n))
    inputs = [i for i in read if i not in constants and i not in set(made)]
    outputs = [o for o in made if readers[o] > inside[o]]
    graph = helper.make_graph(
        list(nodes),
        "dense",
        [types[i] for i in inputs],
        [types[o] for o in outputs],
        [constants[i] for i in read if i in constants],
    )
    part = helper.make_model(
        graph, opset_imports=[o for o in model.opset_import if o.domain != DOMAIN], ir_version=model.ir_version
    )
    options = session_options(threads)
    if threads > 1:  # the workers of one part must not spin while another one runs
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        raise refused("ONNX Runtime", name, error, "openvino") from error
    return _Dense(session, tuple(inputs), tuple(outputs))


def _kernel(node: NodeProto, constants: Mapping[str, Any], packing: Packing, threads: int, name: str) -> _Sparse:
    given = dict(zip(INPUTS, [*node.input, *[""] * len(INPUTS)], strict=False))
    said = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    try:
        held = {k: numpy_helper.to_array(constants[given[k]]) if given[k] else None for k in INPUTS[1:5]}
        value, at = held["value"], held["at"]
        if value is None or at is None:
            raise FileError("it has no packed weight")
        parts = LayerParts(
            said["pattern"].decode(),
            said["coding"].decode(),
            tuple(said["shape"]),
            said["activation"].decode(),
            tuple(said.get("grid", ())),
            tuple(said.get("stride", ())),
            tuple(said.get("padding", ())),
            value,
            at,
            held["scale"],
            held["bias"],
        )
        kernel = packing.kernel(parts, threads)
    except (PruneError, KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, TargetError):
            raise
        raise FileError(
            f"{name}: layer {node.name!r} is damaged ({one_line(error) or error!r}); export it again"
        ) from error
    return _Sparse(kernel, given["x"], given["residual"], node.output[0])


def dense_twin(model: ModelProto) -> ModelProto:
    """The same graph with an ordinary operator in the place of each packed layer: for shapes and counts, not to run."""
    twin = ModelProto()
    twin.CopyFrom(model)
    del twin.graph.node[:]
    for node in model.graph.node:
        if node.domain != DOMAIN:
            twin.graph.node.add().CopyFrom(node)
            continue
        said = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        shape, weight = list(said["shape"]), f"{node.input[1]}:dense"
        if node.op_type == CONV:
            words = {"kernel_shape": shape[2:], "strides": said["stride"], "pads": [*said["padding"]] * 2}
            other = helper.make_node("Conv", [node.input[0], weight], [node.output[0]], **words)
        else:
            other = helper.make_node("MatMul", [node.input[0], weight], [node.output[0]])
            shape = shape[::-1]
        twin.graph.node.append(other)
        twin.graph.input.append(helper.make_tensor_value_info(weight, 1, shape))
    return twin


def _types(model: ModelProto) -> Mapping[str, Any]:
    """Types and shapes of all values by name, as far as ONNX can infer them."""
    inferred = shape_inference.infer_shapes(dense_twin(model), data_prop=True).graph
    return _Types({v.name: v for v in (*inferred.value_info, *inferred.input, *inferred.output)})


class _Types(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        raise FileError(f"the type of {name!r} cannot be inferred; export the network again")
