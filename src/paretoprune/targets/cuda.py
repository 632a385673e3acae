"""PyTorch on an NVIDIA GPU, timed by CUDA events."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from paretoprune.core.errors import UsageError
from paretoprune.targets.graph_file import GraphFile, Graphs
from paretoprune.targets.latency import Clock
from paretoprune.targets.torch_target import Torch, computed_here

DRIVER = Path("/proc/driver/nvidia/version")


class Cuda(Torch):
    """Implements core.protocols.Target, in eager mode on the first GPU. Raises UsageError where there is none.

    What is timed begins with the inputs on the GPU and ends with the outputs there: CUDA events around the calls, of
    which as many as a sample needs are queued. fp32 is not rounded to TF32. In fp16 and bf16, linear layers whose
    weights obey 2:4 run on the GPU's sparse units where they fit (`semi_structured`); the runner's `notes` say which.
    """

    name = "cuda"
    device = "cuda:0"

    def __init__(self, threads: int, graphs: Graphs) -> None:
        check_cuda()
        super().__init__(threads, graphs)
        self.reopen = ""  # resident memory of the process says nothing of the GPU's

    @property
    def precisions(self) -> tuple[str, ...]:
        return computed_here(self.device)

    def fingerprint(self) -> Mapping[str, str]:
        return {**super().fingerprint(), **gpu_facts(self.device)}

    def _call(self, held: GraphFile, name: str) -> Callable[..., Any]:
        import torch

        from paretoprune.targets.semi_structured import compress

        module: Any = super()._call(held, name)
        compress(module, torch.cuda.get_device_capability(self.device))
        return cast(Callable[..., Any], module)

    def describe(self) -> Mapping[str, str]:
        return {"clock": "CUDA events; inputs and outputs stay on the GPU"}

    def clock(self) -> Clock:
        return Clock(wall_ns=EventClock())


class EventClock:
    """Nanoseconds of the GPU's own time up to now, when all that was queued is done.

    Differences of neighbouring events are summed: one event holds 24 bits of milliseconds since another.
    """

    def __init__(self) -> None:
        self._last, self._ns = self._event(), 0.0

    def __call__(self) -> int:
        event = self._event()
        self._ns += 1e6 * self._last.elapsed_time(event)
        self._last = event
        return round(self._ns)

    @staticmethod
    def _event() -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        event.synchronize()
        return event


def check_cuda() -> None:
    import torch

    if torch.version.cuda is None:
        raise UsageError(
            f"target 'cuda' needs a CUDA build of PyTorch, and torch {torch.__version__} is none: install one as "
            "https://pytorch.org/get-started says, or use target='torch'"
        )
    if not torch.cuda.is_available():
        raise UsageError(
            "target 'cuda' needs an NVIDIA GPU, and PyTorch sees none: check nvidia-smi and CUDA_VISIBLE_DEVICES, or "
            "use target='torch'"
        )


def gpu_facts(device: str) -> dict[str, str]:
    """The GPU's name and compute capability, the driver, CUDA and cuDNN."""
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return {
        "gpu": torch.cuda.get_device_name(device),
        "compute_capability": f"{major}.{minor}",
        "driver": driver_version(),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
    }


def driver_version(read: Callable[[], str] = DRIVER.read_text) -> str:
    """Of the kernel module, where the system tells; "unknown" elsewhere."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", read())
    except OSError:
        found = None
    return found[1] if found else "unknown"
