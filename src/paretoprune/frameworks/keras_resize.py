"""The pruned network as a Keras model: every layer's config at its new sizes, then the weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from paretoprune.frameworks.keras_backend import import_keras
from paretoprune.frameworks.keras_network import KerasNetwork, Outline, outline
from paretoprune.frameworks.keras_sizes import OPERATION_SIZES, SIZES, InexpressibleError, Seen

_BUILT_FROM = ("build_config", "compile_config")
"""Sizes of the original inputs: a layer finds its own when it is called."""


def resized(
    network: KerasNetwork, program: fx.GraphModule, inputs: tuple[Any, ...], tensors: Mapping[str, Tensor]
) -> tuple[Any, str]:
    """(a Keras model with these tensors, "") or (None, which layer cannot be written at the new sizes, and why).

    `program` is the rewritten graph and `inputs` are what its placeholders take. The caller compares the two.
    """
    model = network.outline.model
    if why := _no_config(model):
        return None, why
    keras = import_keras()
    try:
        config = copy.deepcopy(keras.saving.serialize_keras_object(model))
        _edit(config, "", network.outline, _watch(network, program, inputs, tensors))
        made = keras.saving.deserialize_keras_object(config, custom_objects=_own_classes(network.outline))
        fill(made, network.outline, tensors)
    except InexpressibleError as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 - a layer's constructor may raise whatever it likes
        return None, f"Keras cannot make it at the new sizes ({_first_line(error)})"
    made.trainable = model.trainable
    return made, ""


def _no_config(model: Any) -> str:
    keras = import_keras()
    functional = getattr(model, "_operations", None) is not None or isinstance(model, keras.Sequential)
    if not functional or type(model).__module__.partition(".")[0] != "keras":
        return (
            "its layers are made by a class of the user's own, which no config can give other sizes; "
            "a Sequential or functional model could be written"
        )
    return ""


def fill(model: Any, of: Outline, tensors: Mapping[str, Tensor]) -> None:
    """Give `model` these values, by the names that its twin `of` has for them. Raises InexpressibleError."""
    mine = outline(model).variables
    if len(mine) != len(of.variables):
        raise InexpressibleError("it has other variables at the new sizes")
    for (name, (variable, _)), own in zip(mine.items(), of.variables, strict=True):
        value = tensors.get(own)
        if value is None:
            continue
        if tuple(variable.shape) != tuple(value.shape):
            raise InexpressibleError(
                f"layer '{own.rpartition('.')[0]}' makes '{name.rpartition('.')[2]}' of shape {tuple(variable.shape)} "
                f"where {tuple(value.shape)} is left"
            )
        with torch.no_grad():
            variable.value.copy_(value)


def _own_classes(of: Outline) -> dict[str, type]:
    """Classes that the caller's process has made: they need not be registered to be made again."""
    kinds = {type(layer) for layer in of.layers.values()}
    return {kind.__name__: kind for kind in kinds if kind.__module__.partition(".")[0] != "keras"}


def _first_line(error: BaseException) -> str:
    """The line that says what is wrong; Keras writes first, and in bold, where it was called."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith("Exception encountered")] or lines
    return f"{type(error).__name__}: {telling[0][:240]}" if telling else type(error).__name__


# -- configs ---------------------------------------------------------------------------------------------------------


def _edit(config: Any, path: str, of: Outline, seen: Mapping[str, Seen]) -> None:
    """Rewrite sizes in a serialised layer and in those within it; `path` is the layer's."""
    for key in _BUILT_FROM:
        config.pop(key, None)
    inner = config.get("config")
    if not isinstance(inner, dict):
        return
    if path in seen:
        _resize(inner, path, of, seen)
    for child in _serialised(inner):
        name = child["config"].get("name")
        found = _path_of(path, name, of) if isinstance(name, str) else None
        if found is not None:
            _edit(child, found, of, seen)


def _resize(inner: dict[str, Any], path: str, of: Outline, seen: Mapping[str, Seen]) -> None:
    layer, layers = of.layers[path], import_keras().layers
    kind, parent = type(layer).__name__, path.rpartition(".")[0]
    if isinstance(layer, layers.InputLayer):
        inner.update(_input_of_part(inner, parent, of, seen))
        return
    rule = (SIZES if isinstance(layer, layers.Layer) else OPERATION_SIZES).get(kind)
    if rule is None or type(layer).__module__.partition(".")[0] != "keras":
        return
    try:
        inner.update(rule(seen[path], inner))
    except InexpressibleError as error:
        raise InexpressibleError(f"layer '{path}' ({kind}) cannot hold it: {error}") from None


def _input_of_part(inner: Mapping[str, Any], parent: str, of: Outline, seen: Mapping[str, Seen]) -> dict[str, Any]:
    """The input of a model within the model has other sizes too; the outermost inputs stay."""
    inputs = getattr(of.layers.get(parent), "inputs", None) or ()
    entering = seen[parent].entering if parent in seen else None
    if len(inputs) != 1 or entering is None:
        return {}
    old = list(inner.get("batch_shape") or inner.get("batch_input_shape") or ())
    if len(old) != len(entering):
        return {}
    key = "batch_shape" if "batch_shape" in inner else "batch_input_shape"
    return {key: [o if o is None else n for o, n in zip(old, entering, strict=True)]}


def _serialised(config: Any) -> Iterator[dict[str, Any]]:
    """The layers that stand in a config, the outermost of each branch."""
    stack = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if value is not config and "class_name" in value and isinstance(value.get("config"), dict):
                if "name" in value["config"]:
                    yield value
                continue
            stack.extend(value.values())
        elif isinstance(value, (list, tuple)):
            stack.extend(value)


def _path_of(parent: str, name: str, of: Outline) -> str | None:
    """The path of the part of `parent` that Keras calls `name`."""
    below = f"{parent}." if parent else ""
    return next(
        (p for p, layer in of.layers.items() if p.rpartition(".")[0] == parent and layer.name == name), None
    ) or (f"{below}{name}" if f"{below}{name}" in of.layers else None)


# -- what the rewritten graph does in each layer ---------------------------------------------------------------------


def _watch(
    network: KerasNetwork, program: fx.GraphModule, inputs: tuple[Any, ...], tensors: Mapping[str, Tensor]
) -> dict[str, Seen]:
    found = {path: Seen(_within(path, tensors)) for path in network.outline.layers}
    with torch.no_grad():
        _Watch(program, found).run(*inputs)
    return found


def _within(path: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(f"{path}."): t for n, t in tensors.items() if n.startswith(f"{path}.")}


class _Watch(fx.Interpreter):
    """Runs the graph and notes, by layer, the arguments and the last result of its operators."""

    def __init__(self, program: fx.GraphModule, found: Mapping[str, Seen]):
        super().__init__(program)
        self._seen = found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        schema = getattr(n.target, "_schema", None)
        if n.op not in ("call_function", "call_method"):
            return value
        names = [a.name for a in schema.arguments] if schema is not None else []
        args = {**dict(zip(names, n.args, strict=False)), **n.kwargs}
        for path, _ in (n.meta.get("nn_module_stack") or {}).values():
            seen = self._seen.get(str(path).partition("@")[0])
            if seen is not None:
                self._enters(n, str(path).partition("@")[0], seen)
                seen.calls.append((str(n.target).removeprefix("aten."), args))
                seen.output = tuple(value.shape) if isinstance(value, Tensor) else None
        return value

    def _enters(self, n: fx.Node, path: str, seen: Seen) -> None:
        """Note the first activation that comes from outside the layer."""
        for operand in n.all_input_nodes if seen.entering is None else ():
            value = self.env.get(operand)
            within = any(
                str(p).partition("@")[0] == path for p, _ in (operand.meta.get("nn_module_stack") or {}).values()
            )
            if operand.op != "get_attr" and not within and isinstance(value, Tensor):
                seen.entering = tuple(value.shape)
                return
