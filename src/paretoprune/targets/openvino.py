"""OpenVINO on the CPU, fp32 and int8. It reads the same ONNX files that ONNX Runtime does.

The extra `openvino` installs it, and NNCF, which quantizes for it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from paretoprune.core.errors import DataError, TargetError, UsageError
from paretoprune.targets.files import new_file
from paretoprune.targets.fingerprint import machine_facts, version_of
from paretoprune.targets.onnx_file import has_external_data, read_model
from paretoprune.targets.onnx_target import OnnxTarget
from paretoprune.targets.session import one_line, refused

if TYPE_CHECKING:
    from paretoprune.targets.feeds import Feed


class OpenVino(OnnxTarget):
    """Implements core.protocols.Target; int8 is NNCF's. Raises UsageError for what is not installed of the two."""

    name = "openvino"

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        library("openvino")

    def fingerprint(self) -> Mapping[str, str]:
        versions = {package: version_of(package) for package in ("openvino", "nncf", "onnx", "torch")}
        return {"target": self.name, "threads": str(self.threads), **machine_facts(), **versions}

    def quantized(self, fp32: Path, path: Path, calibration: Iterable[Feed]) -> Path:
        from paretoprune.targets.feeds import slices
        from paretoprune.targets.int8 import CALIBRATION_ROWS, CALIBRATION_SAMPLES, check_int8

        feeds = list(slices(calibration, CALIBRATION_ROWS, CALIBRATION_SAMPLES))
        if not feeds:
            raise DataError("calibration gave no batch; int8 needs at least one to learn the ranges")
        nncf = library("nncf")
        with new_file(path) as file:
            with _quiet():
                try:
                    made = nncf.quantize(onnx.load(str(fp32)), nncf.Dataset(feeds), subset_size=len(feeds))
                except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
                    raise TargetError(f"NNCF cannot quantize {fp32.name}: {one_line(error)}") from error
            onnx.save(made, str(file))
            if not any(node.op_type == "QuantizeLinear" for node in made.graph.node):
                kinds = ", ".join(sorted({node.op_type for node in made.graph.node}))
                raise TargetError(f"none of the network's operators has an int8 form here ({kinds}); keep it in fp32")
            check_int8(self.load(fp32), self.load(file), feeds)
        return path

    def load(self, path: Path) -> OpenVinoRunner:
        return OpenVinoRunner.open(Path(path), self.threads)


class OpenVinoRunner:
    """Implements core.protocols.Runner. Inputs by name; outputs in the file's order.

    Runs on the calling thread where `threads` is 1. fp32 stays fp32 on processors that would choose bf16.
    """

    def __init__(self, request: Any, model: Any, name: str) -> None:
        self._request, self._name = request, name
        self._inputs = {i.any_name: (i.partial_shape, np.dtype(i.element_type.to_dtype())) for i in model.inputs}
        self.input_names: tuple[str, ...] = tuple(self._inputs)
        self.output_names: tuple[str, ...] = tuple(o.any_name for o in model.outputs)

    @classmethod
    def open(cls, path: Path, threads: int) -> OpenVinoRunner:
        """Raises FileError for a file that cannot be trusted or read, TargetError if the runtime refuses it."""
        model, data = read_model(path)
        core = _core()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            read = core.read_model(str(path)) if has_external_data(model) else core.read_model(data)
            compiled = core.compile_model(read, "CPU", settings)
        except RuntimeError as error:
            raise refused("OpenVINO", str(path), error, "onnxruntime") from error
        return cls(compiled.create_infer_request(), compiled, str(path))

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        if inputs.keys() != self._inputs.keys():
            raise TargetError(
                f"{self._name} takes the inputs {', '.join(self.input_names)}; given were {', '.join(inputs) or 'none'}"
            )
        # OpenVINO would take another shape, or cast another type, without a word.
        for name, (shape, dtype) in self._inputs.items():
            given = np.asarray(inputs[name])
            fits = given.ndim == len(shape) and all(
                d.is_dynamic or d.get_length() == n for d, n in zip(shape, given.shape, strict=True)
            )
            if not fits or given.dtype != dtype:
                raise TargetError(
                    f"{self._name} does not run on {name} {given.shape} of {given.dtype}: it takes {shape} of {dtype}"
                )
        try:
            self._request.infer(dict(inputs), share_inputs=True)
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {tuple(np.shape(value))}" for name, value in inputs.items())
            raise TargetError(f"{self._name} does not run on {shapes}: {one_line(error)}") from error
        return tuple(np.array(self._request.get_output_tensor(i).data) for i in range(len(self.output_names)))


@cache
def _core() -> Any:
    """One for the process: each has threads and caches of its own."""
    return library("openvino").Core()


def library(name: str) -> Any:
    """The module, or UsageError that names the extra."""
    os.environ.setdefault("NNCF_CI", "1")  # else it reports its use over the network, unasked
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"target 'openvino' needs {name}, which is not installed: pip install 'paretoprune[openvino]'"
        ) from error


@contextlib.contextmanager
def _quiet() -> Any:
    """NNCF draws bars and logs what it does."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
