"""Keras files without running what is in them: `.keras` archives and `.h5` files, checked before Keras reads them."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from paretoprune.core.errors import FileError, PruneError
from paretoprune.frameworks.keras_backend import import_keras
from paretoprune.frameworks.keras_configs import check_config, uncompiled
from paretoprune.frameworks.keras_network import outline

SUFFIXES = (".keras", ".h5", ".hdf5")
CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
MAX_CONFIG_BYTES = 64 << 20
MAX_MEMBERS = 10_000
SMALL_BYTES = 64 << 20
MAX_EXPANSION = 100
"""Weights hardly compress: what grows more than this, beyond SMALL_BYTES, was made to fill the memory."""


def is_keras_file(value: object) -> bool:
    return isinstance(value, (str, Path)) and Path(value).suffix.lower() in SUFFIXES


def read_keras(path: str | Path) -> Any:
    """The Keras model in a `.keras` or `.h5` file, not compiled. Raises FileError; no code of the file is run.

    Refused: Lambda layers and others that hold code, classes that this process has not registered, links out of the
    file, and sizes that the file does not hold the weights for.
    """
    file = Path(path)
    if not is_keras_file(file):
        raise FileError(f"{file}: a Keras file ends in {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise FileError(f"{file}: there is no such file")
    keras = import_keras()
    with _readable(file):
        config, stored = _archive(file) if file.suffix == ".keras" else _hdf5(file)
        check_config(config, file)
        _check_weights(keras, config, stored, file)
        return _opened(keras, file)


def write_keras(model: Any, path: str | Path) -> Path:
    """Write a `.keras` file, read it again and compare config and weights; nothing is left where they differ."""
    file = Path(path)
    keras = import_keras()
    part = file.with_name(f".{file.stem}.{os.getpid()}.part.keras")
    try:
        keras.saving.save_model(model, part)
        again = read_keras(part)
        if why := _differs(model, again):
            raise FileError(f"{file} was not written: {why} after it was read again; its layers cannot hold the result")
        os.replace(part, file)
    except OSError as error:
        raise FileError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return file


def _differs(model: Any, again: Any) -> str:
    mine, theirs = outline(model).variables, outline(again).variables
    if list(mine) != list(theirs):
        return "other variables are in it"
    for name, (variable, learned) in mine.items():
        other = theirs[name][0]
        if (learned or variable.value.is_floating_point()) and not torch.equal(variable.value, other.value):
            return f"'{name}' has other values"
    if _plain(model) != _plain(again):
        return "its config is another one"
    return ""


def _plain(model: Any) -> str:
    """A config as text, without the numbers by which a file tells shared objects apart."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if k not in ("shared_object_id", "build_config")}
        return [clean(v) for v in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(clean(model.get_config()), sort_keys=True, default=str)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Whatever a reader raises on a damaged file is a FileError."""
    try:
        yield
    except PruneError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise FileError(
            f"{file} cannot be read as a Keras model ({type(error).__name__}: {lines[0][:200]}); "
            "it is damaged or of another version: save it again with model.save('model.keras')"
        ) from error


def _archive(file: Path) -> tuple[Any, int]:
    """The config of a `.keras` archive, and how many numbers its weights are."""
    if not zipfile.is_zipfile(file):
        raise FileError(f"{file} is no Keras archive (a .keras file is a zip); it is damaged or of another kind")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > MAX_MEMBERS:
            raise FileError(f"{file} holds {len(members)} members, more than the {MAX_MEMBERS} that are sensible")
        for member in members:
            _check_member(member, file)
        names = [m.filename for m in members]
        if missing := {CONFIG, WEIGHTS} - set(names):
            raise FileError(f"{file} has no {' and no '.join(sorted(missing))}: save it again with Keras 3")
        if len(names) != len(set(names)):
            raise FileError(f"{file} holds a member twice; save it again")
        if archive.getinfo(CONFIG).file_size > MAX_CONFIG_BYTES:
            raise FileError(f"{file}: {CONFIG} has more than the {MAX_CONFIG_BYTES} bytes that are sensible")
        config = json.loads(archive.read(CONFIG))
        with archive.open(WEIGHTS) as weights:
            return config, _stored(weights, file)


def _check_member(member: zipfile.ZipInfo, file: Path) -> None:
    parts = PurePosixPath(member.filename.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in member.filename:
        raise FileError(f"{file} holds '{member.filename}', which points out of its folder: it was made to do harm")
    if member.file_size > max(SMALL_BYTES, MAX_EXPANSION * member.compress_size):
        raise FileError(
            f"{file}: '{member.filename}' grows from {member.compress_size} to {member.file_size} bytes: "
            "it was made to fill the memory"
        )


def _hdf5(file: Path) -> tuple[Any, int]:
    """The config of a `.h5` file, and how many numbers its weights are."""
    import h5py

    with h5py.File(file, "r") as opened:
        text = opened.attrs.get("model_config")
        if text is None:
            raise FileError(f"{file} holds weights alone, without the network; build the network and load them into it")
        if len(text) > MAX_CONFIG_BYTES:
            raise FileError(f"{file}: its config has more than the {MAX_CONFIG_BYTES} bytes that are sensible")
        return json.loads(text), _numbers(opened, file)


def _stored(weights: Any, file: Path) -> int:
    import h5py

    with h5py.File(io.BufferedReader(weights), "r") as opened:
        return _numbers(opened, file)


def _numbers(root: Any, file: Path) -> int:
    """Numbers in all data sets of an HDF5 file. Refuses links, data elsewhere, and more than the file can hold."""
    import h5py

    total, stack, done = 0, [root], set[Any]()
    while stack:
        group = stack.pop()
        key = h5py.h5o.get_info(group.id).addr
        if key in done:
            continue
        done.add(key)
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise FileError(f"{file}: '{name}' is a link to another place: save it again with Keras")
            item = group[name]
            if isinstance(item, h5py.Group):
                stack.append(item)
            elif isinstance(item, h5py.Dataset):
                total += _count(item, name, file)
    return total


def _count(item: Any, name: str, file: Path) -> int:
    if item.external or item.is_virtual:
        raise FileError(f"{file}: the values of '{name}' lie in another file: save it again with Keras")
    if item.nbytes > max(SMALL_BYTES, MAX_EXPANSION * item.id.get_storage_size()):
        raise FileError(
            f"{file}: '{name}' claims {item.nbytes} bytes and stores {item.id.get_storage_size()}: "
            "it was made to fill the memory"
        )
    return int(item.size or 0)


def _check_weights(keras: Any, config: Any, stored: int, file: Path) -> None:
    """A config may ask for more memory than there is: it is made without memory first, and its weights counted."""
    with keras.device("meta"):
        legacy = file.suffix != ".keras"
        shell = (
            _opened(keras, file)
            if legacy
            else keras.saving.deserialize_keras_object(uncompiled(config), safe_mode=True)
        )
    values = (v.value for v, _ in outline(shell).variables.values())
    needed = sum(v.numel() for v in values if v.is_floating_point())  # seeds are not stored
    if needed > stored:
        raise FileError(f"{file} describes a network of {needed} numbers and holds {stored}: it is damaged")


def _opened(keras: Any, file: Path) -> Any:
    return keras.saving.load_model(file, compile=False, safe_mode=True)
