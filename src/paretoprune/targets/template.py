"""A network that was exported once lends its file to others of the same structure: weights and sizes are exchanged.

torch's exporter takes most of a second for a network of fifty layers, which a search pays for every candidate. Two cuts
of one network differ in their tensors and in a few integers: the groups of a convolution, the units of an LSTM, what
is reshaped, split or padded to. The tensors are known by name. For an integer nobody says where it came from: it is
taken from the size arguments of the captured graph, or the sizes of its tensors, that had the same value in every full
export so far. Where they no longer agree, and where the file then turns out wrong, a full export follows, which tells
them apart. Nothing here is trusted: `export_fp32` compares every file with its network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import AttributeProto, ModelProto, NodeProto, numpy_helper
from torch import fx, nn

from paretoprune.targets.clean import Array, Graph, compute_constants
from paretoprune.targets.constants import PREFIX
from paretoprune.targets.feeds import Signature

SIZES = frozenset({"group", "hidden_size"})
"""Attributes of ONNX operators (opset 17) that depend on widths; the other sizes are operands."""

MULTIPLES = (2, 3, 4)
"""An LSTM's gates stand side by side: where the third begins is twice the units."""

MOST_ELEMENTS = 64
"""Of a constant tensor of integers; a longer one is no shape."""

ATTEMPTS = 4
"""Files of one structure that may turn out wrong, or full exports that differ otherwise, before no more are cut."""

WRAPPER = "module."
"""What the exporter puts before the names of the network's tensors."""

Trajectory = tuple[int, ...]
"""What an integer was in each full export."""

Constants = Callable[[], nn.Module]
"""The network with its constant parts as buffers; asked for where the file has such."""


class CannotCutError(Exception):
    """Why a full export is needed. Never leaves this room."""


class Templates:
    """Files to cut from, by structure. `why`: the reason why the last export was a full one; empty if it was cut."""

    def __init__(self) -> None:
        self._known: dict[Any, _Template] = {}
        self.why = ""

    def cut(self, module: nn.Module, signature: Signature, constants: Constants) -> ModelProto | None:
        """The raw file of `module`, not yet tidied or checked; None where a full export is needed."""
        try:
            return self._template(module, signature).cut(_Sizes(module), constants)
        except CannotCutError as error:
            self.why = str(error)
            return None

    def took(self) -> None:
        """The file that was cut last is right."""
        self.why = ""

    def refused(self, module: nn.Module, signature: Signature, reason: str) -> None:
        """The file that was cut last is wrong."""
        self._template(module, signature).attempts += 1
        self.why = f"the file that was cut is wrong: {reason}"

    def learn(self, module: nn.Module, signature: Signature, raw: ModelProto) -> None:
        """From a full export, before it is tidied."""
        if (key := _key(module, signature)) is None:
            return
        with contextlib.suppress(CannotCutError):
            if key in self._known:
                self._known[key].learn(_Sizes(module), raw)
            else:
                self._known[key] = _Template(_Sizes(module), raw)

    def _template(self, module: nn.Module, signature: Signature) -> _Template:
        key = _key(module, signature)
        if key is None:
            raise CannotCutError("not a captured graph")
        if key not in self._known:
            raise CannotCutError("the first file of its structure")
        return self._known[key]


class _Template:
    def __init__(self, sizes: _Sizes, raw: ModelProto) -> None:
        self._file = _File.of(raw, sizes.tensors)
        self._arguments: list[Trajectory] = [(v,) for v in sizes.arguments]
        self._dims: list[Trajectory] = [(v,) for v in sizes.dims]
        self._entries: list[Trajectory] = [(v,) for v in self._file.integers()]
        self.attempts = 0

    def learn(self, sizes: _Sizes, raw: ModelProto) -> None:
        other = _File.of(raw, sizes.tensors)
        if other.rest() != self._file.rest():
            self.attempts += 1
            return
        self._arguments = _longer(self._arguments, sizes.arguments)
        self._dims = _longer(self._dims, sizes.dims)
        self._entries = _longer(self._entries, other.integers())

    def cut(self, sizes: _Sizes, constants: Constants) -> ModelProto:
        if self.attempts >= ATTEMPTS:
            raise CannotCutError("files of this structure were wrong before")
        values = self._values(sizes)
        held = sizes.tensors
        if any(name not in held for name in self._file.weights):
            held = held | _tensors(constants())
        return self._file.filled([values[trajectory] for trajectory in self._entries], held)

    def _values(self, sizes: _Sizes) -> dict[Trajectory, int]:
        """What every integer that was seen is now. Arguments come first: they are what sizes are written with."""
        if len(sizes.arguments) != len(self._arguments) or len(sizes.dims) != len(self._dims):
            raise CannotCutError("another number of sizes")
        arguments = _by_trajectory(self._arguments, sizes.arguments)
        dims = _by_trajectory(self._dims, sizes.dims)
        return {t: _value(t, arguments, dims) for t in set(self._entries)}


def _value(
    trajectory: Trajectory, arguments: Mapping[Trajectory, set[int]], dims: Mapping[Trajectory, set[int]]
) -> int:
    choices = [arguments.get(trajectory, set()), dims.get(trajectory, set())]
    if len(set(trajectory)) == 1:
        choices.append({trajectory[0]})
    for k in MULTIPLES:
        if all(v % k == 0 for v in trajectory):
            choices.append({k * v for v in dims.get(tuple(v // k for v in trajectory), ())})
    for found in choices:
        if len(found) == 1:
            return next(iter(found))
        if found:
            raise CannotCutError("a size has several origins")
    raise CannotCutError("a size has no known origin")


def _by_trajectory(trajectories: Sequence[Trajectory], values: Sequence[int]) -> dict[Trajectory, set[int]]:
    found: dict[Trajectory, set[int]] = {}
    for trajectory, value in zip(trajectories, values, strict=True):
        found.setdefault(trajectory, set()).add(value)
    return found


def _longer(trajectories: Sequence[Trajectory], values: Sequence[int]) -> list[Trajectory]:
    return [(*t, v) for t, v in zip(trajectories, values, strict=True)]


# -- the network ------------------------------------------------------------------------------------------------------


class _Sizes:
    """`arguments`: integers in the calls of a captured graph. `dims`: sizes of its tensors."""

    def __init__(self, module: nn.Module) -> None:
        self.arguments: list[int] = []
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                _flat(_call(node), self.arguments)
        self.tensors = _tensors(module)
        self.dims = [n for name in sorted(self.tensors) for n in self.tensors[name].shape]


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(module.named_buffers(remove_duplicate=False))}


def _key(module: nn.Module, signature: Signature) -> Any:
    """What two networks must share for one to lend its file to the other; None for what is not a captured graph."""
    if not isinstance(module, fx.GraphModule):
        return None
    held = _tensors(module)
    calls = tuple((n.op, str(n.target), _flat(_call(n), [])) for n in module.graph.nodes)
    first: dict[int, str] = {}
    tied = tuple((name, first.setdefault(id(held[name]), name)) for name in sorted(held))
    tensors = tuple((name, str(held[name].dtype), held[name].dim()) for name in sorted(held))
    return calls, tensors, tied, signature.names, signature.batched, len(signature.leaves)


def _call(node: fx.Node) -> tuple[Any, Any]:
    """(arguments, keywords) without what is there by default: surgery writes it out, or not."""
    args = list(node.args)
    if isinstance(node.target, torch._ops.OpOverload):
        schema = node.target._schema.arguments
        while args and schema[len(args) - 1].has_default_value() and _same(args[-1], schema[len(args) - 1]):
            args.pop()
    return args, node.kwargs


def _same(value: Any, argument: Any) -> bool:
    return (
        not isinstance(value, fx.Node)
        and type(value) is type(argument.default_value)
        and (value == argument.default_value)
    )


def _flat(value: Any, integers: list[int]) -> Any:
    """The skeleton of a call's arguments, hashable, without their integers, which are put aside."""
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (tuple, list)):
        return tuple(_flat(v, integers) for v in value)
    if isinstance(value, dict):
        return tuple((k, _flat(v, integers)) for k, v in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        integers.append(value)
        return int
    return str(value)


# -- the file ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """A raw file taken apart. `weights`: type by name of the network's tensors. `loose`: the other constants by name,
    one for each place where it is read, for the exporter stores equal ones once."""

    model: ModelProto
    nodes: Sequence[NodeProto]
    weights: Mapping[str, Any]
    loose: Mapping[str, Array]

    @classmethod
    def of(cls, raw: ModelProto, tensors: Mapping[str, torch.Tensor]) -> _File:
        if any(a.HasField("g") or a.graphs for node in raw.graph.node for a in node.attribute):
            raise CannotCutError("a loop or a branch")
        graph = Graph(raw)
        _name_copies(graph, tensors)
        weights = {n: v.dtype for n, v in sorted(graph.constants.items()) if n in tensors or n.startswith(PREFIX)}
        graph.constants = {n: v for n, v in graph.constants.items() if n not in weights}
        compute_constants(graph)
        loose = _own_constants(graph)
        model = ModelProto()
        model.CopyFrom(raw)
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        return cls(model, graph.nodes, weights, loose)

    def integers(self) -> list[int]:
        """Whatever may be a size."""
        found = [n for array in self.loose.values() for n in _integers(array)]
        return found + [a.i for node in self.nodes for a in _size_attributes(node)]

    def filled(self, integers: Sequence[int], tensors: Mapping[str, torch.Tensor]) -> ModelProto:
        """The file with other integers and tensors."""
        left = iter(integers)
        model = ModelProto()
        model.CopyFrom(self.model)
        for name, array in self.loose.items():
            new = _with_integers(array, [next(left) for _ in _integers(array)])
            model.graph.initializer.append(numpy_helper.from_array(new, name))
        model.graph.node.extend(self.nodes)
        for node in model.graph.node:
            for attribute in _size_attributes(node):
                attribute.i = next(left)
        for name, kind in self.weights.items():
            if name not in tensors:
                raise CannotCutError(f"the network has no tensor {name}")
            weight = tensors[name].detach().cpu().contiguous().numpy()
            if weight.dtype != kind:
                raise CannotCutError(f"{name} is of another type")
            model.graph.initializer.append(numpy_helper.from_array(weight, name))
        return model

    def rest(self) -> Any:
        """Everything but weights and integers, and without the names of values, which count what was stored once."""
        names = {name: f"constant {i}" for i, name in enumerate(self.loose)}
        names |= {o: f"{i}:{j}" for i, node in enumerate(self.nodes) for j, o in enumerate(node.output)}
        kinds = [
            _with_integers(array, [1] * len(_integers(array))).tobytes() + str((array.dtype, array.ndim)).encode()
            for array in self.loose.values()
        ]
        outputs = [names.get(o.name, o.name) for o in self.model.graph.output]
        return [_bare(node, names) for node in self.nodes], kinds, list(self.weights.items()), outputs


def _bare(node: NodeProto, names: Mapping[str, str]) -> tuple[Any, ...]:
    fixed = [a.SerializeToString(deterministic=True) for a in node.attribute if a.name not in SIZES]
    return node.op_type, node.domain, tuple(names.get(n, n) for n in node.input), tuple(fixed)


def _size_attributes(node: NodeProto) -> list[AttributeProto]:
    return [a for a in node.attribute if a.name in SIZES and a.type == AttributeProto.INT]


def _integers(array: Array) -> list[int]:
    """The elements of a short tensor of integers; the length of a row of equal numbers, such as a group norm's ones."""
    if array.dtype in (np.int64, np.int32) and array.size <= MOST_ELEMENTS:
        return [int(v) for v in array.flat]
    return [len(array)] if _is_row(array) else []


def _with_integers(array: Array, integers: Sequence[int]) -> Array:
    if array.dtype in (np.int64, np.int32) and array.size <= MOST_ELEMENTS:
        return np.array(integers, array.dtype).reshape(array.shape)
    return np.full(integers[0], array[0], array.dtype) if _is_row(array) else array


def _is_row(array: Array) -> bool:
    return array.ndim == 1 and array.size > 0 and array.dtype == np.float32 and bool((array == array[0]).all())


def _own_constants(graph: Graph) -> dict[str, Array]:
    """In the order in which they are read; each reader gets its own."""
    found: dict[str, Array] = {}
    for node in graph.nodes:
        for place, name in enumerate(node.input):
            if name in graph.constants:
                own = name if name not in found else f"{name}~{len(found)}"
                found[own] = graph.constants[name]
                node.input[place] = own
    return found


def _name_copies(graph: Graph, tensors: Mapping[str, torch.Tensor]) -> None:
    """Tensors of equal values, as those of two batch norms that were not trained, are stored once and copied by an
    identity; here each is stored. Tied ones, which are one tensor in the network too, stay one."""
    copies: dict[str, str] = {}
    for node in graph.nodes:
        source, name = (node.input[0], node.output[0].removeprefix(WRAPPER)) if node.op_type == "Identity" else ("", "")
        if source in graph.constants and name in tensors and tensors[name] is not tensors.get(source):
            copies[node.output[0]] = name
            graph.constants[name] = graph.constants[source]
    graph.nodes = [n for n in graph.nodes if n.op_type != "Identity" or n.output[0] not in copies]
    graph.rename(copies)
