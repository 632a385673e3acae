"""An exported graph made tidy: what is constant is computed, batch norms go into their layers, what nobody reads goes.

torch's exporter does the first two itself, but forgets the names of the weights on the way. Here they stay: a weight is
called as in the network, and its transpose "NAME^T". By these names a file's weights are exchanged, and quantized one
by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from paretoprune.targets.session import RUNTIME_ERRORS, session_options

TRANSPOSED = "^T"
IR_VERSION = 8
MAX_ELEMENTS = 1 << 10
"""A constant that is larger than this, and than what it takes the place of, is left to the runtime."""

_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
_NORMAL = "BatchNormalization"

Array = NDArray[Any]


def tidied(model: ModelProto, passes: Sequence[str] | None = None) -> ModelProto:
    """A copy after `passes`, names of PASSES in their order; all of them by default."""
    graph = Graph(model)
    for name in PASSES if passes is None else passes:
        PASSES[name](graph)
    return graph.model()


class Graph:
    """Nodes in order, and constants by name as arrays."""

    def __init__(self, model: ModelProto) -> None:
        self._source, self.opsets = model, list(model.opset_import)
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.nodes: list[NodeProto] = []
        for node in model.graph.node:
            value = _stored(node)
            if value is None:
                self.nodes.append(_copied(node))
            else:
                self.constants[node.output[0]] = value
        self.outputs = {value.name for value in model.graph.output}

    def readers(self) -> dict[str, list[NodeProto]]:
        found: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in _reads(node):
                found.setdefault(name, []).append(node)
        return found

    def rename(self, names: Mapping[str, str]) -> None:
        """Read names[old] wherever `old` was read."""
        for node in self.nodes:
            renamed(node, names)

    def free_name(self, wanted: str) -> str:
        name, number = wanted, 0
        while name in self.constants or any(name in n.output for n in self.nodes):
            number += 1
            name = f"{wanted}:{number}"
        return name

    def model(self) -> ModelProto:
        result = ModelProto()
        result.CopyFrom(self._source)
        del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
        read = {name for node in self.nodes for name in _reads(node)} | self.outputs
        result.graph.initializer.extend(_tensor(v, n) for n, v in self.constants.items() if n in read)
        result.graph.node.extend(self.nodes)
        return result


def fold_constants(graph: Graph) -> None:
    """Nodes that depend on no input become constants. They are computed by ONNX Runtime, as they would be later."""
    known, chosen = set(graph.constants), list[NodeProto]()
    for node in graph.nodes:
        if _foldable(node) and known.issuperset(_reads(node)) and not graph.outputs.intersection(node.output):
            chosen.append(node)
            known.update(node.output)
    values = _computed(graph, chosen) if chosen else {}
    if not values:
        return
    gone, leaves = {id(node) for node in chosen}, _leaves(graph, chosen)
    read = {name for n in graph.nodes if id(n) not in gone for name in _reads(n)}
    for node in reversed(chosen):  # one that stays needs what it reads
        if read.intersection(node.output) and not _worth(graph, node, values, leaves[node.output[0]] - read):
            gone.discard(id(node))
            read.update(_reads(node))
    graph.nodes = [n for n in graph.nodes if id(n) not in gone]
    read = {name for n in graph.nodes for name in _reads(n)}
    names: dict[str, str] = {}
    for node in chosen:
        for output in read.intersection(node.output) if id(node) in gone else ():
            names[output] = name = graph.free_name(_name_of(node, values[output]) or output)
            graph.constants[name] = values[output]
    graph.rename(names)


def compute_constants(graph: Graph) -> None:
    """As `fold_constants`, of all that `graph.constants` alone lead to, whatever its size."""
    known, chosen = set(graph.constants), list[NodeProto]()
    for node in graph.nodes:
        if _foldable(node) and known.issuperset(_reads(node)) and not graph.outputs.intersection(node.output):
            chosen.append(node)
            known.update(node.output)
    values = _computed(graph, chosen) if chosen else {}
    graph.constants |= values
    gone = {id(node) for node in chosen if all(o in values for o in node.output if o)}
    graph.nodes = [n for n in graph.nodes if id(n) not in gone]


def fold_batch_norms(graph: Graph) -> None:
    """A batch norm with fixed statistics behind a convolution or linear layer scales that layer's outputs instead:
    w' = w γ / √(σ² + ε), b' = (b − μ) γ / √(σ² + ε) + β (Jacob et al. 2018, eq. 14)."""
    readers, makers = graph.readers(), {o: n for n in graph.nodes for o in n.output}
    gone: set[int] = set()
    for norm in [n for n in graph.nodes if n.op_type == _NORMAL]:
        layer = makers.get(norm.input[0])
        alone = layer is not None and len(readers[norm.input[0]]) == 1 and norm.input[0] not in graph.outputs
        if layer is None or not alone or not _folds(graph, layer, norm):
            continue
        _fold(graph, layer, norm, readers)
        gone.add(id(norm))
        layer.output[0] = norm.output[0]
    graph.nodes = [n for n in graph.nodes if id(n) not in gone]


def drop_unread(graph: Graph) -> None:
    """Nodes whose outputs nobody reads, and identities."""
    for node in [n for n in graph.nodes if n.op_type == "Identity" and not graph.outputs.intersection(n.output)]:
        graph.nodes.remove(node)
        graph.rename({node.output[0]: node.input[0]})
    read, kept = set(graph.outputs), list[NodeProto]()
    for node in reversed(graph.nodes):
        if read.intersection(node.output):
            kept.append(node)
            read.update(_reads(node))
    graph.nodes = kept[::-1]


PASSES: Mapping[str, Callable[[Graph], None]] = {
    "constants": fold_constants,
    "batch norms": fold_batch_norms,
    "unread": drop_unread,
}


def _stored(node: NodeProto) -> Array | None:
    """The value of a Constant node that holds a tensor."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    value = next((a.t for a in node.attribute if a.name == "value"), None)
    return None if value is None else numpy_helper.to_array(value)


def _copied(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _tensor(value: Array, name: str) -> TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(value) if value.ndim else value, name)


def renamed(node: NodeProto, names: Mapping[str, str]) -> None:
    """In place, within subgraphs too."""
    for i, name in enumerate(node.input):
        node.input[i] = names.get(name, name)
    for graph in _inner(node):
        for part in graph.node:
            renamed(part, names)


def _inner(node: NodeProto) -> list[GraphProto]:
    return [g for a in node.attribute for g in (*([a.g] if a.HasField("g") else []), *a.graphs)]


def _reads(node: NodeProto) -> list[str]:
    """Inputs, and what subgraphs read from outside (and inside: more names do no harm)."""
    names = [name for name in node.input if name]
    for graph in _inner(node):
        for part in graph.node:
            names += _reads(part)
        names += [o.name for o in graph.output]
    return names


def _foldable(node: NodeProto) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type not in _RANDOM and not _inner(node)


def _computed(graph: Graph, nodes: Sequence[NodeProto]) -> dict[str, Array]:
    """Values by name; none if the runtime lacks an operator: then it all stays as it is."""
    made = list(dict.fromkeys(o for node in nodes for o in node.output if o))
    read = {name for node in nodes for name in node.input}
    weights = [_tensor(v, n) for n, v in graph.constants.items() if n in read]
    results = [ValueInfoProto(name=name) for name in made]
    part = helper.make_model(
        helper.make_graph(list(nodes), "constants", [], results, weights),
        opset_imports=graph.opsets,
        ir_version=IR_VERSION,
    )
    try:
        session = onnxruntime.InferenceSession(
            part.SerializeToString(), session_options(1, optimize=False), providers=["CPUExecutionProvider"]
        )
        found = dict(zip(made, session.run(made, {}), strict=True))
    except RUNTIME_ERRORS:
        return {}
    return found if all(isinstance(v, np.ndarray) for v in found.values()) else {}


def _leaves(graph: Graph, nodes: Sequence[NodeProto]) -> dict[str, frozenset[str]]:
    """By output: the stored constants that it is made of."""
    found = {name: frozenset((name,)) for name in graph.constants}
    for node in nodes:
        made_of = frozenset[str]().union(*(found[n] for n in node.input if n))
        found |= dict.fromkeys(node.output, made_of)
    return found


def _worth(graph: Graph, node: NodeProto, values: Mapping[str, Array], freed: Set[str]) -> bool:
    """Is the file not made larger? A weight that is read elsewhere too would stand in it twice."""
    made = sum(values[o].size for o in node.output if o)
    return made <= max(MAX_ELEMENTS, sum(graph.constants[n].size for n in freed))


def _name_of(node: NodeProto, value: Array) -> str:
    """A transposed weight is called after the weight."""
    return f"{node.input[0]}{TRANSPOSED}" if node.op_type == "Transpose" and value.ndim == 2 else ""


_OUTPUTS_AT: Mapping[str, int] = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0}


def _folds(graph: Graph, layer: NodeProto, norm: NodeProto) -> bool:
    """Is every value constant, and is it the layer's outputs that are scaled?"""
    fixed = all(name in graph.constants for name in (*norm.input[1:5], *[n for n in layer.input[1:3] if n]))
    training = any(a.name == "training_mode" and a.i for a in norm.attribute)
    if layer.op_type not in _OUTPUTS_AT or not fixed or training or len(norm.output) > 1:
        return False
    if layer.op_type == "ConvTranspose":
        return _attribute(layer, "group", 1) == 1
    if layer.op_type == "Gemm":
        plain = _attribute(layer, "alpha", 1.0) == _attribute(layer, "beta", 1.0) == 1.0
        return plain and bool(_attribute(layer, "transB", 0))
    return True


def _fold(graph: Graph, layer: NodeProto, norm: NodeProto, readers: dict[str, list[NodeProto]]) -> None:
    gamma, beta, mean, var = (graph.constants[n].astype(np.float64) for n in norm.input[1:5])
    scale = gamma / np.sqrt(var + _attribute(norm, "epsilon", 1e-5))
    weight = graph.constants[layer.input[1]]
    shape = [1] * weight.ndim
    shape[_OUTPUTS_AT[layer.op_type]] = -1
    named = len(layer.input) > 2 and bool(layer.input[2])
    bias = graph.constants[layer.input[2]].astype(np.float64) if named else 0.0
    name = layer.input[2] if named else _bias_name(layer.input[1])
    folded = ((weight * scale.reshape(shape)).astype(weight.dtype), ((bias - mean) * scale + beta).astype(weight.dtype))
    names = [n if len(readers.get(n, ())) <= 1 else graph.free_name(n) for n in (layer.input[1], name)]
    if not named:
        names[1] = graph.free_name(name)
    for old in layer.input[1:3]:
        readers[old] = [n for n in readers.get(old, ()) if n is not layer]
    graph.constants |= dict(zip(names, folded, strict=True))
    source = layer.input[0]
    del layer.input[:]
    layer.input.extend([source, *names])


def _bias_name(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias" if weight.endswith("weight") else f"{weight}.bias"


def _attribute(node: NodeProto, name: str, default: float) -> float:
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else float(helper.get_attribute_value(found))
