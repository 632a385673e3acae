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
        "losses",
        "metrics",
        "models",
        "ops",
        "optimizers",
        "quantizers",
        "random",
        "regularizers",
    ]
)
"""Parts of Keras whose classes make networks and train them; others read files or call programs."""
_FUNCTIONS = frozenset(
    ["activations", "constraints", "initializers", "losses", "metrics", "ops", "random", "regularizers"]
)
"""Parts of which a config may name a function: it is called on tensors."""
_VALUES = frozenset(
    (
        *("__bytes__", "__complex__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__"),
        *("__tuple__", "TensorShape", "Functional", "Policy"),
    )
)
"""What older files name without a module: plain values, and classes under names of their own."""
_PATHS = ("vocabulary", "vocabulary_path", "idf_weights", "filepath")
"""Fields of layers that look words up; given as text they name a file, which is then read."""


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
        inner = part.get("config")
        if isinstance(inner, dict) and (named := next((k for k in _PATHS if isinstance(inner.get(k), str)), None)):
            raise FileError(
                f"{file}: {where} names another file ({named}={inner[named][:60]!r}), which is not read: give the "
                "layer the words themselves, and save the model again"
            )
        if not _known(part) and str(part.get("module")).startswith("keras."):
            raise FileError(
                f"{file}: {where} is of a part of Keras of which Keras 3 makes no networks, which this process "
                f"does not know ({part['module']}); save the model again with Keras 3, or as .h5 with Keras 2"
            )
        if not _known(part):
            raise FileError(
                f"{file}: {where} is of a class that this process does not know ({part.get('module') or kind}); import "
                "the module that registers it (keras.saving.register_keras_serializable), or build the network in "
                "Python and give the model itself"
            )


def uncompiled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what only training needs."""
    return {k: v for k, v in config.items() if k != "compile_config"}


def _name_of(part: Mapping[str, Any]) -> str:
    inner = part.get("config")
    name = inner.get("name") if isinstance(inner, dict) else None
    return f"layer '{name}' ({part['class_name']})" if isinstance(name, str) else f"'{part['class_name']}'"


def _named(config: Any) -> Iterator[dict[str, Any]]:
    """Everything in a config that names a class or a function. The compilation of the whole model is left out: it is
    not read (see `uncompiled`); that of a model within it is, by Keras.
    """
    stack = [uncompiled(config)]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if isinstance(value.get("class_name"), str):
                yield value
            stack.extend(value.values())
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
        name = part["class_name"]
        return name in _VALUES or any(hasattr(getattr(keras, room, None), name) for room in ROOMS)
    if not isinstance(module, str):
        return False
    if module == "builtins":
        return part["class_name"] in ("function", "__numpy__") and _is_activation(keras, part.get("config"))
    head, *rest = module.removeprefix("keras.src").removeprefix("keras").lstrip(".").split(".")
    if module.partition(".")[0] != "keras":
        return False
    return head in (_FUNCTIONS if part["class_name"] == "function" else ROOMS) or (module == "keras" and not rest)


def _is_activation(keras: Any, name: Any) -> bool:
    return isinstance(name, str) and callable(getattr(keras.activations, name, None))
