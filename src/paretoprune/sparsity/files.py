"""Packed weights in one safetensors file. It does not depend on the processor: kernels lay it out on loading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from paretoprune.core.errors import FileError, PruneError
from paretoprune.core.storage import atomic
from paretoprune.sparsity.parts import SIGNS, Weight, parts_of, weight_of_parts

FORMAT = 1
KEY = "paretoprune.packed"
Tensors = dict[str, NDArray[Any]]


def save_packed(weights: Mapping[str, Weight], path: str | Path) -> Path:
    """Whole or not at all."""
    tensors: Tensors = {}
    layers = {}
    for name, weight in weights.items():
        parts, layers[name] = _parts(weight)
        tensors |= {f"{name}/{part}": np.ascontiguousarray(tensor) for part, tensor in parts.items()}
    about = {"format": FORMAT, "layers": layers}
    about["sha256"] = _digest(about, tensors)
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={KEY: json.dumps(about)})
    return Path(path)


def load_packed(path: str | Path) -> dict[str, Weight]:
    """Raises FileError where the file is not one of ours, is truncated or was altered."""
    path = Path(path)
    tensors, about = _read(path)
    try:
        if about["format"] > FORMAT:
            raise FileError(f"{path}: packed format {about['format']}, newer than {FORMAT}: upgrade paretoprune")
        if about.pop("sha256") != _digest(about, tensors):
            raise FileError(f"{path}: its checksum differs: truncated or altered; pack the network again")
        return {name: _weight(layer, f"{name}/", tensors) for name, layer in about["layers"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{path}: its description is damaged ({error!r}); pack the network again") from error
    except PruneError as error:
        raise FileError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _parts(weight: Weight) -> tuple[Tensors, dict[str, Any]]:
    held = parts_of(weight)
    about: dict[str, Any] = {"shape": list(held.shape)}
    if held.pattern == SIGNS:
        return {"bits": held.value, "scale": weight.scale}, about | {"kind": SIGNS}  # type: ignore[dict-item]
    parts: Tensors = {"value": held.value, "at": held.at}
    if held.scale is not None:
        parts["scale"] = held.scale
    return parts, about | {"kind": "blocks", "pattern": held.pattern, "coding": held.coding}


def _weight(about: dict[str, Any], prefix: str, tensors: Tensors) -> Weight:
    scale = tensors.get(prefix + "scale")
    if about["kind"] == SIGNS:
        return weight_of_parts(SIGNS, "", about["shape"], tensors[prefix + "bits"], np.zeros(0, np.uint8), scale)
    value, at = tensors[prefix + "value"], tensors[prefix + "at"]
    return weight_of_parts(about["pattern"], about["coding"], about["shape"], value, at, scale)


def _read(path: Path) -> tuple[Tensors, dict[str, Any]]:
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise FileError(f"{path}: not a file of packed weights; write one with save_packed")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(text)  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read: {error}; pack the network again") from error


def _digest(about: dict[str, Any], tensors: Tensors) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()
