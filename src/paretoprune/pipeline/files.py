"""Pruned networks on disk: safetensors and JSON with checksums, never pickle."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import fx, nn

from paretoprune import frameworks
from paretoprune import graph as graphs
from paretoprune.core.errors import FileError
from paretoprune.core.plan import Plan
from paretoprune.graph.program import GraphProgram
from paretoprune.pipeline.blueprint import Blueprint
from paretoprune.pipeline.generation import refuse, refused
from paretoprune.pipeline.opening import opened, write_keras
from paretoprune.pipeline.pruned import Pruned
from paretoprune.pipeline.restore import Saved, restored
from paretoprune.store.files import atomic

SCHEMA = 1
MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
MAX_MANIFEST_BYTES = 64 << 20
DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What torch's reader was seen to raise, or may, on files with flipped and missing bytes."""
AS_GRAPH = "loaded as the rewritten graph"
"""How the note begins that `load` adds where the result is not of the user's class."""
CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def save(pruned: Pruned, path: str | Path) -> Path:
    """Write a folder with the weights and a manifest (plan, graph, checksum). The model may have been trained since.

    A path that ends in `.keras` becomes a Keras file, where the result is a Keras model. For a folder that
    `from_pretrained` of a transformers model loads there is `Pruned.save_pretrained`. Raises FileError.
    """
    folder = Path(path)
    if folder.suffix == ".keras":
        return write_keras(pruned, folder)
    folder.mkdir(parents=True, exist_ok=True)
    current = graphs.tensors_of(opened(pruned.model))
    module = pruned.program.module
    tensors = {n: current.get(n, t) for n, t in graphs.tensors_of(module).items()}
    more = {n: t for n, t in current.items() if n not in tensors}
    if frameworks.is_keras(pruned.model) and any(t.is_floating_point() for t in more.values()):
        raise FileError(
            f"a folder holds the graph, which does not know '{next(iter(more))}' of this Keras model: "
            "give a path that ends in .keras"
        )
    own = {**pruned.blueprint.own, **more} if pruned.blueprint is not None else {}
    unique, alias = _untied({**tensors, **own})
    weights = save_tensors(unique)
    graph = _graph_of(module, pruned.blueprint)
    manifest = {
        "schema": SCHEMA,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "alias": alias,
        "trainable": {n: p.requires_grad for n, p in module.named_parameters(remove_duplicate=False)},
        "plan": pruned.plan.to_json(),
        "graph": graph,
        "kept": {n: [None if k is None else k.tolist() for k in dims] for n, dims in pruned.kept.items()},
        "macs": pruned.macs,
        "original_macs": pruned.original_macs,
        "notes": [n for n in pruned.notes if not n.startswith(AS_GRAPH)],
        "keras": frameworks.is_keras(pruned.model),
        "cannot_generate": refused(module),
        "class": None if pruned.blueprint is None else _class_of(pruned, pruned.blueprint, own, graph is None),
    }
    text = json.dumps(manifest).encode()
    for name, data in ((WEIGHTS, weights), (MANIFEST, _signed(text))):
        with atomic(folder / name) as part:
            part.write_bytes(data)
    return folder


def _graph_of(module: nn.Module, blueprint: Blueprint | None) -> dict[str, Any] | None:
    """None where the graph holds what a file cannot, but the class can be made again."""
    if blueprint is not None and not isinstance(module, fx.GraphModule):
        return None
    try:
        return graphs.dump(module)  # type: ignore[arg-type]
    except FileError:
        if blueprint is None:
            raise
        return None


def _class_of(pruned: Pruned, blueprint: Blueprint, own: Mapping[str, torch.Tensor], alone: bool) -> dict[str, Any]:
    """`own`: tensors that the graph lacks. `alone`: there is no graph to compare a restored network with, so figures of
    the outputs are kept.
    """
    data = json.loads(json.dumps(blueprint.to_json()))
    outputs = graphs.figures(pruned.model, Blueprint.from_json(data).example) if alone else []
    kinds = {n: own[n].requires_grad if isinstance(own[n], nn.Parameter) else None for n in sorted(own)}
    return {**data, "own": kinds, "outputs": outputs}


def load(path: str | Path, model: nn.Module | None = None) -> Pruned:
    """Read what `save` wrote. Raises FileError for anything altered or unknown.

    `model`: a fresh network of the class that was pruned, as it was before; it is copied, not changed, and the result
    is of its class. Without it the result is of a transformers class, if that was it and its module is imported
    already, and else the rewritten graph, which a note says. A Keras model comes back as itself from a `.keras` file
    alone (keras.saving.load_model). No class that a file names is ever imported.
    """
    folder = Path(path)
    manifest = _manifest(folder / MANIFEST)
    weights = _read(folder / WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != manifest.get("weights_sha256"):
        raise FileError(f"{folder / WEIGHTS} was altered (its SHA-256 does not match the manifest); save it again")
    try:
        tensors = load_tensors(weights)
    except SafetensorError as error:
        raise FileError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    try:
        return _pruned(manifest, tensors, model)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError, IndexError) as error:
        # The checksum is sound, so somebody wrote this on purpose.
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise FileError(f"{folder / MANIFEST} does not describe a network ({what}); save it again") from error


def _pruned(manifest: Mapping[str, Any], tensors: dict[str, torch.Tensor], model: nn.Module | None) -> Pruned:
    for name, target in manifest["alias"].items():
        tensors[name] = tensors[target]
    told, trainable = manifest.get("class"), manifest["trainable"]
    kinds: Mapping[str, bool | None] = {} if told is None else told["own"]
    own = _parameters({n: tensors.pop(n) for n in kinds}, {n: k for n, k in kinds.items() if k is not None})
    blueprint = None if told is None else Blueprint.from_json(told)
    graph = None if manifest["graph"] is None else graphs.load(manifest["graph"], tensors, trainable)
    result, notes = _of_class(blueprint, manifest, graph, own, _parameters(tensors, trainable), model)
    made: Any = graph if result is None else result
    if blueprint is not None:
        blueprint = replace(blueprint, own={} if result is not None else own)
    return Pruned(
        made,
        Plan.from_json(manifest["plan"]),
        {n: tuple(_indices(k) for k in dims) for n, dims in manifest["kept"].items()},
        GraphProgram(made if graph is None else graph, (), ()),
        manifest["macs"],
        manifest["original_macs"],
        (*manifest["notes"], *notes),
        blueprint,
    )


def _of_class(
    blueprint: Blueprint | None,
    manifest: Mapping[str, Any],
    graph: Any,
    own: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    model: nn.Module | None,
) -> tuple[nn.Module | None, list[str]]:
    """The network in the user's class where that can be made, else None and a sentence on it."""
    cannot = manifest.get("cannot_generate")
    if blueprint is None:
        if model is not None:
            raise FileError("the file holds a rewritten graph alone: load it without model=")
        if cannot:
            refuse(graph, str(cannot))
        note = f"{AS_GRAPH}: a Keras model is kept by a path that ends in .keras"
        return None, [note] if manifest.get("keras") else []
    held = tensors if graph is None else graphs.tensors_of(graph)
    result, why = restored(blueprint, Saved({**held, **own}, graph, manifest["class"]["outputs"]), model)
    if result is not None:
        return result, []
    name = blueprint.name.rpartition(":")[2]
    if graph is None:
        raise FileError(
            f"the file holds no graph of this {name}, for it uses operators that no file can hold, and {why}"
        )
    if blueprint.config is not None:
        refuse(graph, why)
    return None, [f"{AS_GRAPH}, not as {name}: {why}"]


def _parameters(tensors: Mapping[str, torch.Tensor], trainable: Mapping[str, bool]) -> dict[str, torch.Tensor]:
    """Parameters as such; tensors that were one stay one."""
    made: dict[int, torch.Tensor] = {}
    return {
        n: made.setdefault(id(t), nn.Parameter(t, requires_grad=trainable[n]) if n in trainable else t)
        for n, t in tensors.items()
    }


def load_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a state dict (safetensors, or a torch file read with `weights_only`) into `model`, strictly.

    A leading "module." of every key is dropped, unless the model's own names have it. Raises FileError; nothing in the
    file is ever executed.
    """
    file = Path(path)
    if file.suffix not in CHECKPOINT_SUFFIXES:
        raise FileError(f"{file}: a checkpoint is a state dict in one of {', '.join(CHECKPOINT_SUFFIXES)}")
    state = _state_dict(file)
    own = model.state_dict()
    if state and all(k.startswith("module.") for k in state) and not all(k.startswith("module.") for k in own):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    wrong = [
        f"'{k}' {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if missing or extra or wrong:
        parts = [
            f"{label}: {', '.join(map(str, items[:4]))}"
            for label, items in (("missing", missing), ("unknown", extra), ("wrong shape", wrong))
            if items
        ]
        raise FileError(f"{file} does not fit {type(model).__name__} ({'; '.join(parts)})")
    model.load_state_dict(state, strict=False)
    return model


def _state_dict(file: Path) -> Mapping[str, torch.Tensor]:
    data = _read(file)
    if file.suffix == ".safetensors":
        try:
            return load_tensors(data)
        except SafetensorError as error:
            raise FileError(f"{file} is no sound safetensors file: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch on its own reader: either it loads, or it is refused below
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except DAMAGED as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise FileError(
            f"{file} cannot be read as plain tensors ({why}); it is damaged or may hold code: "
            "save model.state_dict() only, best as safetensors"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise FileError(f"{file} holds no state dict (names to tensors); save model.state_dict()")
    return state


def _untied(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Each tensor once, and name -> first name for those that share it."""
    first: dict[int, str] = {}
    unique: dict[str, torch.Tensor] = {}
    alias: dict[str, str] = {}
    for name, tensor in tensors.items():
        if id(tensor) in first:
            alias[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            unique[name] = tensor.detach().cpu().contiguous()
    return unique, alias


def _signed(text: bytes) -> bytes:
    """The manifest's own checksum on a first line: a flipped bit in it must be seen too."""
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def _manifest(file: Path) -> dict[str, Any]:
    data = _read(file, MAX_MANIFEST_BYTES)
    checksum, _, text = data.partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != checksum:
        raise FileError(f"{file} is truncated or was altered (its checksum does not match); save it again")
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{file} is no JSON ({str(error)[:160]}); save it again") from error
    if not isinstance(manifest, dict) or type(manifest.get("schema")) is not int:
        raise FileError(f"{file} is no manifest of a pruned network; give the folder that paretoprune.save wrote")
    if manifest["schema"] > SCHEMA:
        raise FileError(
            f"{file} has schema {manifest['schema']}, this version reads up to {SCHEMA}: upgrade paretoprune"
        )
    return manifest


def _read(file: Path, most: int | None = None) -> bytes:
    try:
        if most is not None and file.stat().st_size > most:
            raise FileError(f"{file} has {file.stat().st_size} bytes, more than the {most} that are sensible")
        return file.read_bytes()
    except OSError as error:
        raise FileError(f"{file} cannot be read: {error.strerror or error}") from error


def _indices(values: list[int] | None) -> NDArray[np.int64] | None:
    return None if values is None else np.array(values, dtype=np.int64)
