"""A Keras model as a torch module: readable parameter names, and the names of its layers in the captured graph."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from paretoprune.core.graph import Example
from paretoprune.frameworks.keras_backend import checked_model, import_keras
from paretoprune.frameworks.keras_calls import CALLS

_TAKEN = frozenset(dir(nn.Module()))


class _Device(str):
    """The name of a device that equals the device: else Keras moves every tensor to where it is already."""

    __slots__ = ()
    __hash__ = str.__hash__

    def lower(self) -> _Device:
        return self

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other)

    def __ne__(self, other: object) -> bool:
        return not self == other


class Place(nn.Module):
    """Where one Keras layer stands: its variables, and a call that shows in the captured graph under its name."""

    def forward(self, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)


@dataclass(frozen=True)
class Outline:
    """What a network shares with its copies: the Keras model, whose values are not touched, and names of its parts.

    `layers`: dotted path -> layer or operation, without the model itself. `variables`: dotted name -> variable and
    whether training learns it; a variable or layer that is shared stands under its first name.
    """

    model: Any
    layers: Mapping[str, Any]
    variables: Mapping[str, tuple[Any, bool]]

    def __deepcopy__(self, memo: dict[int, Any]) -> Outline:
        return self


class KerasNetwork(nn.Module):
    """Runs a Keras model over its own copy of the variables, which keep the names and shapes that Keras gives them.

    `substitute`: layers for which torch has one operator use that (see keras_calls).
    """

    def __init__(self, model: Any, substitute: bool = True):
        super().__init__()
        self.__class__ = _class_for(checked_model(model))
        self.outline = outline(model)
        self.substitute = substitute
        for path in self.outline.layers:
            self._place(path)
        for name, (variable, learned) in self.outline.variables.items():
            owner, _, leaf = name.rpartition(".")
            _hold(self._place(owner), leaf, variable, learned)
        self.eval()

    def _place(self, path: str) -> nn.Module:
        place: nn.Module = self
        for part in path.split(".") if path else ():
            if part not in place._modules:
                place.add_module(part, Place())
            place = place.get_submodule(part)
        return place

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """What the Keras model gives on these inputs, with the values of this network."""
        keras = import_keras()
        scope = keras.StatelessScope()
        for name, (variable, _) in self.outline.variables.items():
            scope.state_mapping[id(variable)] = self.tensor(name)
        model = self.outline.model
        with ExitStack() as stack:
            stack.enter_context(scope)
            stack.enter_context(keras.device(_Device(next((p.device for p in self.parameters()), "cpu"))))
            for path, layer in self.outline.layers.items():
                stack.enter_context(self._named(self.get_submodule(path), layer))
            given, named = packed(model, Example(args, kwargs))
            output = model(*given, **named, training=self.training)
        if self.training:
            self._update(scope)
        return output

    def compare(self, inputs: Example) -> None:
        """Give up torch's operators where they do not give what Keras gives on these inputs."""
        plain = KerasNetwork(self.outline.model, substitute=False)
        with torch.no_grad():
            try:
                expected, got = (tree.tree_leaves(n(*inputs.args, **inputs.kwargs)) for n in (plain, self))
            except Exception:  # noqa: BLE001 - the capture runs the network again, and explains what is wrong
                return
        self.substitute = len(expected) == len(got) and all(map(_close, expected, got))

    def put_back(self) -> None:
        """Write the values into the Keras model's own variables."""
        with torch.no_grad():
            for name, (variable, _) in self.outline.variables.items():
                variable.value.copy_(self.tensor(name))

    def matching(self, twin: KerasNetwork, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`tensors` of `twin`, which has the same variables in the same order, by the names that they have here."""
        names = zip(self.outline.variables, twin.outline.variables, strict=True)
        return {mine: tensors[theirs] for mine, theirs in names if theirs in tensors}

    def tensor(self, name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        found: Tensor = getattr(self.get_submodule(owner), leaf)
        return found

    @contextmanager
    def _named(self, place: nn.Module, layer: Any) -> Iterator[None]:
        """While the block runs, the layer's call goes through its place."""
        call, own = layer.call, vars(layer).get("call")
        mine = self.substitute and type(layer).__module__.startswith("keras.")
        ours = CALLS.get(type(layer).__name__) if mine else None

        def run(*args: Any, **kwargs: Any) -> Any:
            result = NotImplemented if ours is None else ours(layer, *args, **kwargs)
            return call(*args, **kwargs) if result is NotImplemented else result

        def through(*args: Any, **kwargs: Any) -> Any:
            return place(run, *args, **kwargs)

        object.__setattr__(layer, "call", through)
        try:
            yield
        finally:
            if own is None:
                object.__delattr__(layer, "call")
            else:
                object.__setattr__(layer, "call", own)

    def _update(self, scope: Any) -> None:
        """What training wrote into the state: moving averages, seeds."""
        with torch.no_grad():
            for name, (variable, _) in self.outline.variables.items():
                held, now = self.tensor(name), scope.get_current_value(variable)
                if now is not held:
                    held.copy_(now)


def _close(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b)
    scale = float(a.abs().max()) if a.numel() and a.is_floating_point() else 0.0
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=1e-3, atol=1e-4 * scale)


def packed(model: Any, inputs: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as the model's call takes them: several inputs of a functional model are one list or one dict."""
    if getattr(model, "_inputs_struct", None) is None:
        by_name = set(inputs.kwargs) <= set(inspect.signature(model.call).parameters)
        return (inputs.args, dict(inputs.kwargs)) if by_name else ((*inputs.args, dict(inputs.kwargs)), {})
    if inputs.kwargs:
        return (*inputs.args, dict(inputs.kwargs)), {}
    return ((list(inputs.args),) if len(inputs.args) > 1 else inputs.args), {}


def _class_for(model: Any) -> type:
    """KerasNetwork under the model's name, whose forward names the model's inputs as torch.export wants them named."""

    def forward(self: KerasNetwork, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = _inputs(model)
    if named is not None:
        forward.__signature__ = inspect.Signature([own, *named])  # type: ignore[attr-defined]
    return type(type(model).__name__, (KerasNetwork,), {"forward": forward, "__module__": __name__})


def _inputs(model: Any) -> list[inspect.Parameter] | None:
    struct = getattr(model, "_inputs_struct", None)
    if struct is None:
        given = inspect.signature(model.call).parameters.values()
        return [p for p in given if p.name != "training"]
    names = list(struct) if isinstance(struct, dict) else [i.name for i in model.inputs]
    if not all(n.isidentifier() and not keyword.iskeyword(n) for n in names) or "self" in names:
        return None
    return [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]


def _hold(place: nn.Module, leaf: str, variable: Any, learned: bool) -> None:
    value = variable.value.detach().clone()
    if learned and value.is_floating_point():
        place.register_parameter(leaf, nn.Parameter(value, requires_grad=bool(variable.trainable)))
    else:
        place.register_buffer(leaf, value)


def outline(model: Any) -> Outline:
    layers = dict(_below(model))
    variables: dict[str, tuple[Any, bool]] = {}
    seen: set[int] = set()
    for path, layer in (("", model), *layers.items()):
        for name, variable, learned in _own_variables(layer):
            if id(variable) not in seen:
                seen.add(id(variable))
                variables[_free(f"{path}.{_safe(name)}".lstrip("."), {*variables, *layers})] = variable, learned
    return Outline(model, layers, variables)


def _below(model: Any) -> Iterator[tuple[str, Any]]:
    """Everything with a call below the model, once, by dotted path."""
    done, taken = {id(model)}, set[str]()
    stack = [("", part) for part in reversed(_parts(model))]
    while stack:
        prefix, layer = stack.pop()
        if id(layer) in done:
            continue
        done.add(id(layer))
        path = _free(f"{prefix}{_safe(layer.name)}", taken)
        taken.add(path)
        yield path, layer
        stack += [(f"{path}.", part) for part in reversed(_parts(layer))]


def _parts(layer: Any) -> list[Any]:
    """Layers within a layer, and the operations of a functional model."""
    within = list(getattr(layer, "_layers", ()) or ())
    operations = [o for o in getattr(layer, "_operations", ()) or () if all(o is not p for p in within)]
    return [part for part in (*within, *operations) if hasattr(part, "call")]


def _own_variables(layer: Any) -> Iterator[tuple[str, Any, bool]]:
    for variable in getattr(layer, "_trainable_variables", ()):
        yield variable.name, variable, True
    for variable in getattr(layer, "_non_trainable_variables", ()):
        yield variable.name, variable, False
    for generator in getattr(layer, "_seed_generators", ()):
        yield generator.state.name, generator.state, False


def _safe(name: str) -> str:
    """A name that a torch module may have: no dots, no method of it."""
    cleaned = name.replace(".", "_").replace("/", "_") or "_"
    return f"{cleaned}_" if cleaned in _TAKEN else cleaned


def _free(name: str, taken: set[str]) -> str:
    free, k = name, 2
    while free in taken:
        free, k = f"{name}_{k}", k + 1
    return free
