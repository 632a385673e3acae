"""A training on disk: everything that the rest of it depends on, without pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from paretoprune.core.errors import FileError
from paretoprune.core.storage import atomic, storing
from paretoprune.recover.packing import pack, unpack

SCHEMA = 1
STATE = "training.json"
REMEDY = "delete the folder to start again"


class Checkpoint:
    """A folder with the tensors of the latest state and, written after them, a signed JSON file that names them.

    Killed at any moment, it holds the state before or the state after, whole. `about` says which training it is; a
    folder of another one is refused. Raises FileError for what was altered, StoreError where it cannot be written.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.about: dict[str, Any] = json.loads(json.dumps(about))

    def write(self, step: int, state: Mapping[str, Any]) -> None:
        found: dict[str, Tensor] = {}
        packed = pack(state, found)
        tensors = save_tensors({n: t.cpu().contiguous().clone() for n, t in found.items()})
        name = f"step-{step:08d}.safetensors"
        text = json.dumps(
            {
                "schema": SCHEMA,
                "about": self.about,
                "tensors": name,
                "sha256": hashlib.sha256(tensors).hexdigest(),
                "state": packed,
            }
        ).encode()
        for file, data in ((name, tensors), (STATE, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)):
            with atomic(self.folder / file) as part:
                part.write_bytes(data)
        for old in self.folder.glob("step-*.safetensors"):
            if old.name != name:
                with storing(old):
                    old.unlink(missing_ok=True)

    def read(self) -> dict[str, Any] | None:
        """The state that was written last; None where there is none yet."""
        file = self.folder / STATE
        if not file.exists():
            return None
        manifest = self._manifest(file)
        data = self._bytes(self.folder / Path(str(manifest["tensors"])).name)
        if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
            raise FileError(f"{self.folder / manifest['tensors']} is truncated or was altered; {REMEDY}")
        try:
            state: dict[str, Any] = unpack(manifest["state"], load_tensors(data))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise FileError(f"{file} does not describe a training ({type(error).__name__}); {REMEDY}") from error
        return state

    def _manifest(self, file: Path) -> dict[str, Any]:
        checksum, _, text = self._bytes(file).partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != checksum:
            raise FileError(f"{file} is truncated or was altered (its checksum does not match); {REMEDY}")
        manifest: dict[str, Any] = json.loads(text)
        if manifest["schema"] > SCHEMA:
            raise FileError(f"{file} has schema {manifest['schema']}, this version reads {SCHEMA}: upgrade paretoprune")
        then = manifest["about"]
        other = [k for k in {**self.about, **then} if self.about.get(k) != then.get(k)]
        if other:
            was = "; ".join(f"{k} was {_short(then.get(k))}, now {_short(self.about.get(k))}" for k in other)
            raise FileError(f"{self.folder} holds another training ({was}): give another folder, or the same settings")
        return manifest

    def _bytes(self, file: Path) -> bytes:
        try:
            return file.read_bytes()
        except OSError as error:
            raise FileError(f"{file} cannot be read ({error.strerror}); {REMEDY}") from error


def _short(value: Any) -> str:
    return json.dumps(value)[:60]


def tensors_by_name(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, tied ones once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors_by_name(module).items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(save_tensors({"t": tensor.detach().cpu().contiguous()}))
    return digest.hexdigest()
