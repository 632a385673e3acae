"""A loaded `.pte` file.

Behind the program, where the runtime does not look, our files carry what a program does not: the inputs' names, which
dimension is the batch, and a SHA-256 of all that stands before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paretoprune.core.errors import FileError, TargetError
from paretoprune.targets.executorch import library
from paretoprune.targets.session import one_line
from paretoprune.targets.torch_runner import Expected, check_feed, noise, output_names

MAGIC = b"paretoprune-pte1"
FOOTER = 32 + 8 + len(MAGIC)
MAX_ABOUT_BYTES = 1 << 20
DTYPES = ("float32", "int64", "int32", "uint8", "int8", "bool")


@dataclass(frozen=True)
class About:
    """`inputs`: (name, shape at the largest batch, type, batched). `outputs`: whether each has the batch first."""

    inputs: tuple[tuple[str, tuple[int, ...], str, bool], ...]
    outputs: tuple[bool, ...]
    most: int

    @property
    def expected(self) -> Expected:
        return {name: (shape, dtype, batched) for name, shape, dtype, batched in self.inputs}


def packed(program: bytes, about: About) -> bytes:
    """The bytes of a file."""
    text = json.dumps(asdict(about)).encode()
    body = program + text
    return body + hashlib.sha256(body).digest() + len(text).to_bytes(8, "little") + MAGIC


def unpacked(path: Path) -> tuple[bytes, About]:
    """(program, about). Raises FileError for anything that we did not write, or that was altered since."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}; give the path of an exported file") from error
    if len(data) < FOOTER or not data.endswith(MAGIC):
        raise FileError(f"{path} is no .pte file that paretoprune exported, or it is truncated; export it again")
    body, digest = data[:-FOOTER], data[-FOOTER:][:32]
    if hashlib.sha256(body).digest() != digest:
        raise FileError(f"{path} was altered (its SHA-256 does not match); export it again")
    size = int.from_bytes(data[-len(MAGIC) - 8 : -len(MAGIC)], "little")
    if not 0 < size <= min(MAX_ABOUT_BYTES, len(body)):
        raise FileError(f"{path} does not say what it takes; export it again")
    try:
        return body[:-size], _about(json.loads(body[-size:]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(f"{path} does not say what it takes ({type(error).__name__}); export it again") from error


def _about(given: Mapping[str, Any]) -> About:
    inputs = tuple((str(n), tuple(map(int, shape)), str(d), bool(b)) for n, shape, d, b in given["inputs"])
    if any(dtype not in DTYPES for _, _, dtype, _ in inputs):
        raise ValueError("unknown type")
    return About(inputs, tuple(map(bool, given["outputs"])), int(given["most"]))


class ExecuTorchRunner:
    """Implements core.protocols.Runner. A batch beyond the file's largest is run in pieces."""

    def __init__(self, method: Any, program: Any, about: About, name: str, threads: int) -> None:
        self._method, self._program, self._about = method, program, about
        self._name, self._threads = name, threads
        self.input_names: tuple[str, ...] = tuple(about.expected)
        self.output_names: tuple[str, ...] = output_names(len(about.outputs))

    @classmethod
    def open(cls, path: Path, threads: int) -> ExecuTorchRunner:
        return cls.of(*unpacked(path), str(path), threads)

    @classmethod
    def of(cls, program: bytes, about: About, name: str, threads: int) -> ExecuTorchRunner:
        """Raises TargetError where the runtime refuses the program."""
        runtime = library("executorch.runtime")
        set_threads(threads)
        try:
            held = runtime.Runtime.get().load_program(program)
            method = held.load_method("forward")
        except RuntimeError as error:
            raise TargetError(
                f"ExecuTorch cannot load {name}: {one_line(error)}. If an operator is missing, try "
                "target='onnxruntime' or 'torch'"
            ) from error
        return cls(method, held, about, name, threads)

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        tensors = self._tensors(inputs)
        pieces = [[np.array(t.numpy()) for t in self._run(piece)] for piece in self._pieces(tensors)]
        if len(pieces) == 1:
            return tuple(pieces[0])
        parts = zip(self._about.outputs, zip(*pieces, strict=True), strict=True)
        return tuple(np.concatenate(rows) if batched else rows[0] for batched, rows in parts)

    def bind(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], Any]:
        """A call on these inputs; what is timed."""
        pieces = self._pieces(self._tensors(inputs))
        if len(pieces) == 1:
            return lambda: self._run(pieces[0])
        return lambda: [self._run(piece) for piece in pieces]

    def sample(self) -> dict[str, NDArray[Any]]:
        """One sample by input name: seeded noise, integers zero."""
        return noise(self._about.expected)

    def _tensors(self, inputs: Mapping[str, NDArray[Any]]) -> list[torch.Tensor]:
        check_feed(self._name, self._about.expected, inputs)
        arrays = (np.ascontiguousarray(inputs[name]) for name in self.input_names)
        return [torch.from_numpy(a if a.flags.writeable else a.copy()) for a in arrays]

    def _pieces(self, tensors: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        batched = [b for _, _, _, b in self._about.inputs]
        sizes = {len(t) for t, b in zip(tensors, batched, strict=True) if b}
        if len(sizes) > 1:
            raise TargetError(f"{self._name} does not run on batches of different sizes: {sorted(sizes)}")
        size, most = (sizes.pop() if sizes else 0), self._about.most
        if size <= most:
            return [tensors]
        if not all(self._about.outputs):
            raise TargetError(
                f"{self._name} does not run on a batch of {size}: it takes up to {most}, and an output without a "
                "batch dimension cannot be put together from pieces"
            )
        return [
            [t[i : i + most].contiguous() if b else t for t, b in zip(tensors, batched, strict=True)]
            for i in range(0, size, most)
        ]

    def _run(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        set_threads(self._threads)
        try:
            given = self._method.execute(tensors)
        except RuntimeError as error:
            shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip(self.input_names, tensors, strict=True))
            raise TargetError(f"{self._name} does not run on {shapes}: {one_line(error)}") from error
        return [t for t in given if isinstance(t, torch.Tensor)]


def set_threads(threads: int) -> None:
    """XNNPACK's threads are the process's."""
    bindings = library("executorch.extension.pybindings.portable_lib")
    if bindings._threadpool_get_thread_count() != threads:
        bindings._unsafe_reset_threadpool(threads)
