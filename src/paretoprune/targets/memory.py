"""An exported file in a fresh process: how far that grows, and how long its first answer takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from paretoprune.core.measurement import Measurement
from paretoprune.targets.fresh import ONNX_RUNTIME, TIMEOUT_S, Fresh, Opener, in_fresh_process

NOTE = "resident growth of a fresh process over its imports"


def peak_memory(
    path: Path,
    inputs: Mapping[str, NDArray[Any]],
    *,
    opener: Opener = ONNX_RUNTIME,
    timeout_s: float = TIMEOUT_S,
    target: str = "",
) -> Measurement | None:
    """Growth in bytes over the state after the imports; largest of three processes, the smallest as `low`.

    None where the system keeps no such record (/proc is Linux's). Raises TargetError with the child's last words if it
    fails or outlives `timeout_s`.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return None
    return memory_of(_children(path, inputs, opener, timeout_s, 3), target)


def memory_of(runs: Sequence[Fresh], target: str = "") -> Measurement | None:
    """The largest growth, with the smallest as `low`; of one file it differs by about 1 % between processes."""
    grown = [run.grown for run in runs]
    if min(grown) < 0:
        return None
    return Measurement(
        float(max(grown)), float(min(grown)), float(max(grown)), len(grown), "B", "measured", target, NOTE
    )


def cold_start(
    path: Path,
    inputs: Mapping[str, NDArray[Any]],
    *,
    opener: Opener = ONNX_RUNTIME,
    timeout_s: float = TIMEOUT_S,
    target: str = "",
) -> Measurement:
    """Milliseconds of wall time to load the file and answer once; median of five processes, with the extremes.

    The file is in the system's cache by then. Raises as `peak_memory` does.
    """
    taken = sorted(run.first_ns / 1e6 for run in _children(path, inputs, opener, timeout_s, 5))
    note = "load and first answer in a fresh process, imports not counted"
    return Measurement(taken[len(taken) // 2], taken[0], taken[-1], len(taken), "ms", "measured", target, note)


def _children(
    path: Path, inputs: Mapping[str, NDArray[Any]], opener: Opener, timeout_s: float, count: int
) -> list[Fresh]:
    return [in_fresh_process(path, inputs, opener=opener, timeout_s=timeout_s) for _ in range(count)]
