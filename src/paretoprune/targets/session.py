"""A loaded ONNX file on ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from paretoprune.core.errors import TargetError
from paretoprune.core.protocols import Runner
from paretoprune.targets.onnx_file import has_external_data, read_model

RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(v for v in vars(_state).values() if isinstance(v, type) and issubclass(v, Exception)),
    RuntimeError,
    ValueError,
)
"""What ONNX Runtime raises; its own classes share no base."""

_QUIET = 4
"""Fatal messages only: every error reaches the caller as an exception."""


def session_options(threads: int, optimize: bool = True) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = _QUIET
    return options


def open_session(model: Path | bytes, threads: int, name: str) -> onnxruntime.InferenceSession:
    """`name` is what an error calls the model."""
    source = str(model) if isinstance(model, Path) else model
    try:
        return onnxruntime.InferenceSession(source, session_options(threads), providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        raise refused("ONNX Runtime", name, error, "openvino") from error


_MISSING = re.compile(
    r"No Op registered for (?P<a>\S+)|Fatal error: (?P<b>[^(\s]+)\(.*is not a registered|"
    r"No conversion rule found for operations: (?P<c>.+?)(?: To |$)"
)


def refused(runtime: str, name: str, error: Exception, others: str) -> TargetError:
    """What a runtime says of a file that it does not load; a missing operator is named, with what else may have it."""
    text = one_line(error)
    if (found := _MISSING.search(text)) is None:
        return TargetError(f"{runtime} cannot load {name}: {text}")
    operator = next(group for group in found.groups() if group)
    return TargetError(
        f"{runtime} has no operator {operator}, which {name} needs: try target={others!r}, or write that part of the "
        "network with other operators"
    )


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


class FileRunner(Runner, Protocol):
    """A runner of our own."""

    output_names: tuple[str, ...]


class OrtRunner:
    """Implements core.protocols.Runner. Inputs by name; outputs in the file's order."""

    def __init__(self, session: onnxruntime.InferenceSession, name: str) -> None:
        self._session = session
        self._name = name
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = _QUIET
        self.input_names: tuple[str, ...] = tuple(i.name for i in session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(o.name for o in session.get_outputs())

    @classmethod
    def open(cls, path: Path, threads: int) -> OrtRunner:
        """Raises FileError for a file that cannot be trusted or read, TargetError if the runtime refuses it."""
        model, data = read_model(path)
        return cls(open_session(path if has_external_data(model) else data, threads, str(path)), str(path))

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        if inputs.keys() != set(self.input_names):
            raise TargetError(
                f"{self._name} takes the inputs {', '.join(self.input_names)}; given were {', '.join(inputs) or 'none'}"
            )
        try:
            outputs = self._session.run(None, dict(inputs), self._run_options)
        except RUNTIME_ERRORS as error:
            shapes = ", ".join(f"{name} {tuple(np.shape(value))}" for name, value in inputs.items())
            raise TargetError(f"{self._name} does not run on {shapes}: {one_line(error)}") from error
        return tuple(outputs)
