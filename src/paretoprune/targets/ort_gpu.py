"""ONNX Runtime on an NVIDIA GPU: its CUDA and TensorRT providers, fp32.

ONNX Runtime goes on without a word where a provider cannot be loaded, and puts what a provider cannot compute on the
CPU. Here both are errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from paretoprune.core.errors import TargetError, UsageError
from paretoprune.targets.cuda import driver_version
from paretoprune.targets.fingerprint import machine_facts, version_of
from paretoprune.targets.macs import CONTRACTIONS
from paretoprune.targets.onnx_file import has_external_data, read_model
from paretoprune.targets.onnx_target import OnnxTarget
from paretoprune.targets.session import RUNTIME_ERRORS, OrtRunner, one_line, refused, session_options

if TYPE_CHECKING:
    pass

HEAVY = frozenset(CONTRACTIONS) | {"LSTM", "GRU", "RNN", "Einsum", "Attention", "Softmax", "LayerNormalization"}
"""Operators that must run on the GPU. Shape arithmetic is put on the CPU on purpose."""
CARDS = Path("/proc/driver/nvidia/gpus")


class OnnxRuntimeCuda(OnnxTarget):
    """Implements core.protocols.Target. Raises UsageError where ONNX Runtime has no such provider.

    Timed by the wall clock over calls that wait for the GPU, with inputs and outputs on it. fp32 is not made TF32.
    """

    name = "onnxruntime-cuda"
    precisions: tuple[str, ...] = ("fp32",)
    device = "cuda:0"
    provider = "CUDAExecutionProvider"
    options: Mapping[str, str] = {"device_id": "0", "use_tf32": "0"}

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        offered = onnxruntime.get_available_providers()
        if self.provider not in offered:
            raise UsageError(
                f"target {self.name!r} needs ONNX Runtime's {self.provider}, and this build has "
                f"{', '.join(offered)}: pip uninstall onnxruntime, then pip install onnxruntime-gpu, with the CUDA"
                f"{' and TensorRT' if 'Tensorrt' in self.provider else ''} libraries that its release names"
            )

    def fingerprint(self) -> Mapping[str, str]:
        versions = {package: version_of(package) for package in ("onnxruntime-gpu", "onnx", "torch")}
        gpu = {"gpu": ", ".join(_cards()) or "unknown", "driver": driver_version()}
        own = {"target": self.name, "threads": str(self.threads), "onnxruntime": onnxruntime.__version__}
        return {**own, **machine_facts(), **versions, **gpu}

    def describe(self) -> Mapping[str, str]:
        return {"clock": "wall; each call waits for the GPU, inputs and outputs stay on it", "provider": self.provider}

    def clock(self) -> Any:
        from paretoprune.targets.latency import Clock

        return Clock()

    def load(self, path: Path) -> GpuRunner:
        """Raises TargetError where the provider was not used, or where it left heavy operators to the CPU."""
        model, data = read_model(Path(path))
        source = str(path) if has_external_data(model) else data
        return GpuRunner(open_on(source, self.provider, self.options, self.threads, str(path)), str(path))


class OnnxRuntimeTensorRt(OnnxRuntimeCuda):
    """The same through TensorRT, which builds an engine for every new shape: the first call takes long.

    TensorRT may round fp32 to TF32 on GPUs that have it; a file whose outputs move too far by that is rejected.
    """

    name = "onnxruntime-tensorrt"
    provider = "TensorrtExecutionProvider"
    options: Mapping[str, str] = {"device_id": "0"}
    compiles = True


def open_on(source: str | bytes, provider: str, options: Mapping[str, str], threads: int, name: str) -> Any:
    """A session that really runs on `provider`."""
    settings = session_options(threads)
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = onnxruntime.InferenceSession(source, settings, providers=[(provider, dict(options))])
    except RUNTIME_ERRORS as error:
        raise refused("ONNX Runtime", name, error, "onnxruntime") from error
    check_placed(session, provider, name)
    return session


def check_placed(session: Any, provider: str, name: str) -> None:
    """Raises TargetError for a session that does not run on `provider`, or not with what takes time."""
    used = session.get_providers()
    if provider not in used:
        raise TargetError(
            f"ONNX Runtime could not load {provider} and would have run {name} on {', '.join(used)}: "
            "its CUDA libraries are missing or of another version than onnxruntime-gpu was built for"
        )
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise TargetError(
            f"onnxruntime {onnxruntime.__version__} does not tell where it runs {name}, which may be the CPU: "
            "pip install --upgrade onnxruntime-gpu"
        )
    parts = session.get_provider_graph_assignment_info()
    if left := left_to_cpu((part.ep_name, node.op_type) for part in parts for node in part.get_nodes()):
        raise TargetError(
            f"{provider} leaves {', '.join(left)} of {name} to the CPU: use target='onnxruntime', or write that part "
            "of the network with other operators"
        )


def left_to_cpu(placed: Iterable[tuple[str, str]]) -> list[str]:
    """Heavy operators among (provider, operator) that are not on a GPU."""
    return sorted({operator for provider, operator in placed if provider.startswith("CPU") and operator in HEAVY})


class GpuRunner(OrtRunner):
    """Implements core.protocols.Runner."""

    def bind(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], Any]:
        """A call on inputs that lie on the GPU; its results stay there."""
        binding = self._session.io_binding()
        place = onnxruntime.OrtValue.ortvalue_from_numpy
        held = {name: place(np.ascontiguousarray(value), "cuda", 0) for name, value in inputs.items()}
        try:
            for name, value in held.items():
                binding.bind_ortvalue_input(name, value)
            for name in self.output_names:
                binding.bind_output(name, "cuda", 0)
        except RUNTIME_ERRORS as error:
            raise TargetError(f"{self._name} does not take these inputs: {one_line(error)}") from error

        def work() -> None:
            self._session.run_with_iobinding(binding, self._run_options)

        return work


def _cards() -> list[str]:
    """Names of the GPUs, where the system tells."""
    try:
        texts = [(card / "information").read_text() for card in sorted(CARDS.iterdir())]
    except OSError:
        return []
    return [found[1].strip() for text in texts if (found := re.search(r"Model:(.*)", text))]
