"""OpenVINO on the CPU. It reads the same ONNX files that ONNX Runtime does.

The extra `openvino` installs it, and NNCF, which quantizes for it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from paretoprune.core.errors import FileError, TargetError, UsageError
from paretoprune.targets.fingerprint import machine_facts, version_of
from paretoprune.targets.onnx_file import has_external_data, precision_of, read_model
from paretoprune.targets.onnx_target import Maker, OnnxTarget
from paretoprune.targets.session import one_line, refused
from paretoprune.targets.weights import weights_of

if TYPE_CHECKING:
    from paretoprune.targets.feeds import Feed


BF16 = "bf16"


class OpenVino(OnnxTarget):
    """Implements core.protocols.Target; int8 is NNCF's. Raises UsageError for what is not installed of the two."""

    name = "openvino"
    precisions: tuple[str, ...] = ("fp32", "int8", "int8-weights", "bf16", "fp16")

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        library("openvino")

    def fingerprint(self) -> Mapping[str, str]:
        versions = {package: version_of(package) for package in ("openvino", "nncf", "onnx", "torch")}
        return {"target": self.name, "threads": str(self.threads), **machine_facts(), **versions}

    def check(self, precision: str) -> None:
        super().check(precision)
        if precision == BF16 and not has_bf16():
            raise TargetError(
                f"bf16: this processor ({machine_facts()['cpu']}) has no bfloat16 instructions, so OpenVINO would "
                "compute in single precision: export where there are (AMX, AVX-512 BF16), or use fp16 to halve the file"
            )

    def makers(self) -> Mapping[str, Maker]:
        return {"int8": quantize_by_nncf}

    def load(self, path: Path) -> OpenVinoRunner:
        return OpenVinoRunner.open(Path(path), self.threads)


class OpenVinoRunner:
    """Implements core.protocols.Runner. Inputs by name; outputs in the file's order.

    Runs on the calling thread where `threads` is 1. bf16 is computed in where the file says so, and nowhere else:
    OpenVINO would choose it by itself on some processors.
    """

    def __init__(self, request: Any, model: Any, name: str) -> None:
        self._request, self._name = request, name
        self._inputs = {i.any_name: (i.partial_shape, np.dtype(i.element_type.to_dtype())) for i in model.inputs}
        self.input_names: tuple[str, ...] = tuple(self._inputs)
        self.output_names: tuple[str, ...] = tuple(o.any_name for o in model.outputs)

    @classmethod
    def open(cls, path: Path, threads: int, read: Callable[[bytes], Any] | None = None) -> OpenVinoRunner:
        """`read`: what makes OpenVINO's network of the file's bytes, where it is more than an ONNX file.

        Raises FileError for a file that cannot be trusted or read, TargetError if the runtime refuses it.
        """
        model, data = read_model(path)
        external = has_external_data(model)
        if external and read is not None:
            raise FileError(f"{path} keeps tensors outside itself, which files with packed layers never do")
        bf16 = precision_of(model) == BF16
        if bf16 and not has_bf16():
            raise TargetError(f"{path} is to be computed in bf16, for which this processor has no instructions")
        return cls._compiled(read or _core().read_model, str(path) if external else data, threads, str(path), bf16)

    @classmethod
    def of(cls, data: bytes, threads: int, name: str) -> OpenVinoRunner:
        """Of an fp32 file's bytes."""
        return cls._compiled(_core().read_model, data, threads, name)

    @classmethod
    def _compiled(
        cls, read: Callable[[Any], Any], file: bytes | str, threads: int, name: str, bf16: bool = False
    ) -> OpenVinoRunner:
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": BF16 if bf16 else "f32",
        }
        try:
            compiled = _core().compile_model(read(file), "CPU", settings)
        except RuntimeError as error:
            raise refused("OpenVINO", name, error, "onnxruntime") from error
        return cls(compiled.create_infer_request(), compiled, name)

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


def has_bf16() -> bool:
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def quantize_by_nncf(fp32: Path, file: Path, feeds: Sequence[Feed], kept: Collection[str]) -> None:
    """Static int8 where OpenVINO's kernels take it, biases corrected; layers of the weights `kept` stay as they are."""
    from paretoprune.targets.feeds import slices
    from paretoprune.targets.int8 import REFINING_ROWS, REFINING_SAMPLES
    from paretoprune.targets.ranges import narrow_ranges

    nncf, model = library("nncf"), onnx.load(str(fp32))
    nodes = [name for weight in weights_of(model.graph) if weight.name in kept for name in weight.layers]
    with _quiet():
        try:
            made = nncf.quantize(
                model, nncf.Dataset(feeds), subset_size=len(feeds), ignored_scope=nncf.IgnoredScope(names=nodes)
            )
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise TargetError(f"NNCF cannot quantize {fp32.name}: {one_line(error)}") from error
    onnx.save(made, str(file))
    narrow_ranges(fp32, file, list(slices(feeds, REFINING_ROWS, REFINING_SAMPLES)))


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
