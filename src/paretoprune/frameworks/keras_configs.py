"""What a Keras config may name: classes of Keras that hold no code, and classes that this process has registered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paretoprune.core.errors import FileError
from paretoprune.frameworks.keras_backend import import_keras

HOLD_CODE = {
    "Lambda": "a Lambda layer holds Python code",
    "__lambda__": "it holds a Python function as byte code",
    "TorchModuleWrapper": "it holds a pickled torch module, which runs code when it is opened",
    "TFSMLayer": "it points at a TensorFlow program elsewhere",
    "JaxLayer": "it holds Python functions",
    "FlaxLayer": "it holds Python functions",
    "__typespec__": "it holds a TensorFlow type",
}
ROOMS = frozenset(
    [
        "activations",
        "constraints",
        "dtype_policies",
        "initializers",
        "layers",
        "models",
        "ops",
        "quantizers",
        "random",
        "regularizers",
    ]
)
"""Parts of Keras whose classes make networks; others read files or call programs."""
_BEYOND = ("optimizers", "losses", "metrics", "trainers")
"""Parts that only training needs: not read, since the model is not compiled."""


def check_config(config: Any, file: Path) -> None:
    """Refuse, before anything is made, whatever would run code or import a module. Raises FileError."""
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise FileError(f"{file} describes no Keras model; save it with model.save('model.keras')")
    for part in _named(config):
        kind = part["class_name"]
        where = _name_of(part)
        if kind in HOLD_CODE:
            raise FileError(
                f"{file}: {where} cannot be opened, because {HOLD_CODE[kind]}; a file is never run here: replace it by "
                "layers of Keras, or build the network in Python and give the model itself"
            )
        if not _known(part):
            raise FileError(
                f"{file}: {where} is of a class that this process does not know ({part.get('module') or kind}); import "
                "the module that registers it (keras.saving.register_keras_serializable), or build the network in "
                "Python and give the model itself"
            )


def _name_of(part: Mapping[str, Any]) -> str:
    inner = part.get("config")
    name = inner.get("name") if isinstance(inner, dict) else None
    return f"layer '{name}' ({part['class_name']})" if isinstance(name, str) else f"'{part['class_name']}'"


def _named(config: Any) -> Iterator[dict[str, Any]]:
    """Everything in a config that names a class or a function; what only training needs is left out."""
    stack = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if isinstance(value.get("class_name"), str):
                yield value
            stack.extend(v for k, v in value.items() if k != "compile_config")
        elif isinstance(value, list):
            stack.extend(value)


def _known(part: Mapping[str, Any]) -> bool:
    """Keras looks among registered classes first, then in the named module; without one, among its own layers."""
    keras = import_keras()
    registered = part.get("registered_name")
    if isinstance(registered, str) and keras.saving.get_registered_object(registered) is not None:
        return True
    module = part.get("module")
    if module is None:
        return ">" not in part["class_name"] and not (isinstance(registered, str) and ">" in registered)
    if not isinstance(module, str):
        return False
    if module == "builtins":
        return part["class_name"] in ("function", "__numpy__") and _is_activation(keras, part.get("config"))
    head, *rest = module.removeprefix("keras.src").removeprefix("keras").lstrip(".").split(".")
    return module.partition(".")[0] == "keras" and (head in ROOMS or (module == "keras" and not rest))


def _is_activation(keras: Any, name: Any) -> bool:
    return isinstance(name, str) and callable(getattr(keras.activations, name, None))
