"""A network that was exported once lends its file to others of the same structure: weights and sizes are exchanged.

torch's exporter takes most of a second for a network of fifty layers, which a search pays for every candidate. Two cuts
of one network differ in their tensors and in a few integers: the groups of a convolution, the units of an LSTM, what
is reshaped, split or padded to. The tensors are known by name. For an integer nobody says where it came from: it is
taken from the size arguments of the captured graph, or the sizes of its tensors, that had the same value in every full
export so far. Where they no longer agree, and where the file then turns out wrong, a full export follows, which tells
them apart. Nothing here is trusted: `export_fp32` compares every file with its network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import AttributeProto, ModelProto, TensorProto, numpy_helper
from torch import fx, nn

from paretoprune.targets.clean import renamed
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
    """Files to cut from, by structure. `cut_files` and `full`: what was exported how; `why`: the last full export's reason."""

    def __init__(self) -> None:
        self._known: dict[Any, _Template] = {}
        self.cut_files = 0
        self.full: dict[str, int] = {}
        self.why = ""

    def cut(self, module: nn.Module, signature: Signature, constants: Constants) -> ModelProto | None:
        """The raw file of `module`, not yet tidied or checked; None where a full export is needed."""
        try:
            return self._template(module, signature).cut(_Sizes(module), module, constants)
        except CannotCutError as error:
            self.why = str(error)
            return None

    def took(self) -> None:
        """The file that was cut last is right."""
        self.cut_files += 1
        self.why = ""

    def refused(self, module: nn.Module, signature: Signature, reason: str) -> None:
        """The file that was cut last is wrong."""
        self._template(module, signature).attempts += 1
        self.why = f"the file that was cut is wrong: {reason}"

    def learn(self, module: nn.Module, signature: Signature, raw: ModelProto) -> None:
        """From a full export, before it is tidied."""
        self.full[self.why] = self.full.get(self.why, 0) + 1
        if (key := _key(module, signature)) is None:
            return
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
        self._raw = _normal(raw, sizes.tensors)
        self._named = {t.name for t in self._raw.graph.initializer if _is_weight(t.name, sizes.tensors)}
        for tensor in self._raw.graph.initializer:
            if tensor.name in self._named:
                tensor.ClearField("raw_data")
        self._kinds = {t.name: t.data_type for t in self._raw.graph.initializer}
        self._arguments = [(v,) for v in sizes.arguments]
        self._dims = [(v,) for v in sizes.dims]
        self._entries: list[Trajectory] = [(e.value,) for e in _entries(self._raw, self._named)]
        self._rest = _rest(self._raw, self._named)
        self.attempts = 0

    def learn(self, sizes: _Sizes, raw: ModelProto) -> None:
        other = _normal(raw, sizes.tensors)
        found = [e.value for e in _entries(other, self._named)]
        if len(found) != len(self._entries) or _rest(other, self._named) != self._rest:
            self.attempts += 1
            return
        self._arguments = _longer(self._arguments, sizes.arguments)
        self._dims = _longer(self._dims, sizes.dims)
        self._entries = _longer(self._entries, found)

    def cut(self, sizes: _Sizes, module: nn.Module, constants: Constants) -> ModelProto:
        if self.attempts >= ATTEMPTS:
            raise CannotCutError("files of this structure were wrong before")
        values = self._values(sizes)
        held = sizes.tensors
        if any(name not in held for name in self._named):
            held = held | _tensors(constants())
        model = ModelProto()
        model.CopyFrom(self._raw)
        for entry, trajectory in zip(_entries(model, self._named), self._entries, strict=True):
            entry.value = values[trajectory]
        for tensor in model.graph.initializer:
            if tensor.name in self._named:
                tensor.CopyFrom(self._filled(tensor.name, held))
        return model

    def _filled(self, name: str, held: Mapping[str, torch.Tensor]) -> TensorProto:
        if name not in held:
            raise CannotCutError(f"the network has no tensor {name}")
        result = numpy_helper.from_array(held[name].detach().cpu().contiguous().numpy(), name)
        if result.data_type != self._kinds[name]:
            raise CannotCutError(f"{name} is of another type")
        return result

    def _values(self, sizes: _Sizes) -> dict[Trajectory, int]:
        """What every integer that was seen is now. Arguments come first: they are what sizes are written with."""
        if len(sizes.arguments) != len(self._arguments) or len(sizes.dims) != len(self._dims):
            raise CannotCutError("another number of sizes")
        arguments = _by_trajectory(self._arguments, sizes.arguments)
        dims = _by_trajectory(self._dims, sizes.dims)
        return {t: _value(t, arguments, dims) for t in set(self._entries)}


def _value(trajectory: Trajectory, arguments: Mapping[Trajectory, set[int]], dims: Mapping[Trajectory, set[int]]) -> int:
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
    return not isinstance(value, fx.Node) and type(value) is type(argument.default_value) and (
        value == argument.default_value
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


class _Element:
    """One integer of a tensor."""

    def __init__(self, tensor: TensorProto, place: int) -> None:
        self._tensor, self._place = tensor, place

    @property
    def value(self) -> int:
        return int(numpy_helper.to_array(self._tensor).flat[self._place])

    @value.setter
    def value(self, new: int) -> None:
        array = numpy_helper.to_array(self._tensor).copy()
        if array.flat[self._place] != new:
            array.flat[self._place] = new
            self._tensor.CopyFrom(numpy_helper.from_array(array, self._tensor.name))


class _Attribute:
    def __init__(self, attribute: AttributeProto) -> None:
        self._attribute = attribute

    @property
    def value(self) -> int:
        return int(self._attribute.i)

    @value.setter
    def value(self, new: int) -> None:
        self._attribute.i = new


def _entries(model: ModelProto, named: set[str]) -> Iterator[_Element | _Attribute]:
    """Every integer of the file that may be a size."""
    for tensor in model.graph.initializer:
        if tensor.name not in named:
            yield from _elements(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in SIZES and attribute.type == AttributeProto.INT:
                yield _Attribute(attribute)
            elif attribute.name == "value" and node.op_type == "Constant" and attribute.HasField("t"):
                yield from _elements(attribute.t)


def _elements(tensor: TensorProto) -> Iterator[_Element]:
    count = int(np.prod(tensor.dims))
    if tensor.data_type in (TensorProto.INT64, TensorProto.INT32) and count <= MOST_ELEMENTS:
        yield from (_Element(tensor, place) for place in range(count))


def _rest(model: ModelProto, named: set[str]) -> bytes:
    """Everything in the file but its weights and the integers: two files that can lend to each other agree here."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for entry in _entries(copy, named):
        entry.value = 0
    for tensor in copy.graph.initializer:
        if tensor.name in named:
            kind, name = tensor.data_type, tensor.name
            tensor.Clear()
            tensor.data_type, tensor.name = kind, name
    return copy.SerializeToString(deterministic=True)


def _is_weight(name: str, tensors: Mapping[str, torch.Tensor]) -> bool:
    return name in tensors or name.startswith(PREFIX)


def _normal(raw: ModelProto, tensors: Mapping[str, torch.Tensor]) -> ModelProto:
    """A copy in which every tensor of the network is an initializer, in the order of names.

    The exporter stores tensors of equal values once, as those of two batch norms that were not trained. Tied ones, which
    are one tensor in the network too, stay one.
    """
    model = ModelProto()
    model.CopyFrom(raw)
    stored = {t.name: t for t in model.graph.initializer}
    copies: dict[str, str] = {}
    for node in model.graph.node:
        source, name = (node.input[0], node.output[0].removeprefix(WRAPPER)) if node.op_type == "Identity" else ("", "")
        if source in stored and name in tensors and tensors[name] is not tensors.get(source):
            copies[node.output[0]] = name
            copy = TensorProto()
            copy.CopyFrom(stored[source])
            copy.name = name
            stored[name] = copy
    nodes = [n for n in model.graph.node if n.op_type != "Identity" or n.output[0] not in copies]
    for node in nodes:
        renamed(node, copies)
    made = ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(stored[name] for name in sorted(stored))
    return made
