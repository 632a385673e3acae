"""Networks for PyTorch as one safetensors file: tensors, and the graph as JSON in its header. Nothing is unpickled.

The header holds a SHA-256 of the whole file (computed with zeros in its own place), so a truncated or altered file is
refused before anything in it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from paretoprune.core.errors import FileError, TargetError
from paretoprune.core.graph import Example

if TYPE_CHECKING:
    import torch
    from torch import nn

SCHEMA = 1
SUFFIX = ".safetensors"
MAX_HEADER_BYTES = 64 << 20
MAX_FILE_BYTES = 64 << 30
DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
"""Of the arrays that a runner takes; numpy has no bfloat16, so such a network takes float32 and casts it."""
_DIGEST = '"sha256":"'
_ZEROS = "0" * 64


class Graphs(Protocol):
    """What the graph room does for files. The pipeline gives it to the targets, which know no graphs."""

    reopen: str
    """As in `targets.traits`: how a fresh process finds a target with these functions."""

    def dump(self, module: nn.Module, example: Example) -> tuple[dict[str, Any], dict[str, torch.Tensor], Example]:
        """(graph as JSON, its tensors, the example in the order of its inputs): flat tensors in and out."""
        ...

    def load(self, graph: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        """Raises FileError for anything but tensor operators."""
        ...


OPEN = -1


@dataclass(frozen=True)
class Input:
    """One value that the graph takes.

    A tensor: `shape` at the example's batch, OPEN for what else may have any size; `dtype` of the array that is given,
    `cast` the type it is computed in.
    Anything else has a `value` for ever, and no name.
    """

    name: str = ""
    dtype: str = ""
    cast: str = ""
    shape: tuple[int, ...] = ()
    batched: bool = False
    value: bool | int | float | str | None = None


@dataclass(frozen=True)
class GraphFile:
    """`outputs`: how many tensors the graph gives."""

    precision: str
    inputs: tuple[Input, ...]
    outputs: int
    graph: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    digest: str = ""


def write(path: Path, held: GraphFile) -> None:
    """Raises TargetError where a tensor has no form in the file."""
    from safetensors.torch import save

    unique, alias = _untied(held.tensors)
    about = {
        "schema": SCHEMA,
        "precision": held.precision,
        "inputs": [asdict(i) for i in held.inputs],
        "outputs": held.outputs,
        "alias": alias,
        "graph": held.graph,
    }
    try:
        data = save(unique, {"paretoprune": json.dumps(about), "sha256": _ZEROS})
    except (KeyError, ValueError, RuntimeError) as error:
        raise TargetError(f"the network holds a tensor that safetensors cannot: {error}") from error
    end = _header_end(data, path)
    digest = hashlib.sha256(data).hexdigest()
    header = data[:end].replace((_DIGEST + _ZEROS).encode(), (_DIGEST + digest).encode(), 1)
    with path.open("wb") as file:
        file.write(header)
        file.write(memoryview(data)[end:])


def read(path: Path) -> GraphFile:
    """Raises FileError for what is missing, truncated, altered, larger than sensible, newer, or no such file."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = _bytes(path)
    end = _header_end(data, path)
    try:
        given = json.loads(data[8:end])["__metadata__"]
        text, digest = given["paretoprune"], given["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(f"{path} is no file of a PyTorch target, or it was altered; export it again") from error
    blank = data[:end].replace(f"{_DIGEST}{digest}".encode(), (_DIGEST + _ZEROS).encode(), 1)
    found = hashlib.sha256(blank)
    found.update(memoryview(data)[end:])
    if found.hexdigest() != digest:
        raise FileError(f"{path} is truncated or was altered (its SHA-256 does not match); export it again")
    try:
        return _parsed(json.loads(text), load(data), digest)
    except FileError as error:
        raise FileError(f"{path}: {error}") from error
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        # The checksum is sound, so somebody wrote this on purpose.
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise FileError(f"{path} does not describe a network ({what}); export it again") from error


def _bytes(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise FileError(f"{path} has {size} bytes, more than the {MAX_FILE_BYTES} that are sensible")
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}; give the path of an exported file") from error


def _header_end(data: bytes, path: Path) -> int:
    """Where the tensors begin: 8 bytes with the header's length, then the header."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or 8 + length > len(data):
        raise FileError(f"{path} is no file of a PyTorch target, or it is truncated; export it again")
    if length > MAX_HEADER_BYTES:
        raise FileError(f"{path} has a header of {length} bytes, more than the {MAX_HEADER_BYTES} that are sensible")
    return 8 + length


def _parsed(about: Mapping[str, Any], tensors: dict[str, torch.Tensor], digest: str) -> GraphFile:
    schema = about["schema"]
    if type(schema) is not int or schema > SCHEMA:
        raise FileError(f"it has schema {schema!r}, this version reads up to {SCHEMA}: upgrade paretoprune")
    for name, of in about["alias"].items():
        tensors[name] = tensors[of]
    inputs = tuple(_input(i) for i in about["inputs"])
    names = [i.name for i in inputs if i.name]
    if len(set(names)) != len(names):
        raise FileError(f"two of its inputs have one name ({', '.join(names)[:160]})")
    return GraphFile(str(about["precision"]), inputs, int(about["outputs"]), about["graph"], tensors, digest)


def _input(given: Mapping[str, Any]) -> Input:
    made = Input(**{**given, "shape": tuple(int(n) for n in given["shape"])})
    if made.name and (made.dtype not in DTYPES or made.cast not in (*DTYPES, "bfloat16")):
        raise FileError(f"input {made.name!r} has an unknown type ({made.dtype!r}, {made.cast!r})")
    if not isinstance(made.value, (bool, int, float, str, type(None))):
        raise FileError(f"an input has the value {str(made.value)[:80]!r}")
    return made


def _untied(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Each tensor once, on the CPU, and name -> first name for those that share it."""
    first: dict[int, str] = {}
    alias: dict[str, str] = {}
    unique: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if id(tensor) in first:
            alias[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        unique[name] = tensor.detach().cpu().contiguous().clone()
    return unique, alias
