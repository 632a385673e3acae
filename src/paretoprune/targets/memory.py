"""An exported file in a fresh process: how far that grows, and how long its first answer takes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretoprune.core.errors import TargetError
from paretoprune.core.measurement import Measurement
from paretoprune.targets.onnx_file import read_model

CHILD = Path(__file__).with_name("memory_child.py")


RUNTIMES = ("onnxruntime", "openvino")
"""Those that the child process can load a file with; others tell it how (`reopen` in `targets.traits`)."""
TIMEOUT_S = 120.0


def peak_memory(
    path: Path,
    inputs: Mapping[str, NDArray[Any]],
    *,
    runtime: str = RUNTIMES[0],
    threads: int = 1,
    timeout_s: float = TIMEOUT_S,
    target: str = "",
    reopen: str = "",
) -> Measurement | None:
    """Growth in bytes over the state after the imports; largest of three processes, the smallest as `low`.

    `reopen`: see `targets.traits`; needed for a runtime that is not among RUNTIMES.
    None where the system keeps no such record (/proc is Linux's). Raises TargetError with the child's last words if it
    fails or outlives `timeout_s`.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return None
    grown = [growth for growth, _ in _children(path, inputs, _how(runtime, reopen), threads, timeout_s, 3)]
    note = "resident growth of a fresh process over its imports"
    return Measurement(
        float(max(grown)), float(min(grown)), float(max(grown)), len(grown), "B", "measured", target, note
    )


def cold_start(
    path: Path,
    inputs: Mapping[str, NDArray[Any]],
    *,
    runtime: str = RUNTIMES[0],
    threads: int = 1,
    timeout_s: float = TIMEOUT_S,
    target: str = "",
    reopen: str = "",
) -> Measurement:
    """Milliseconds of wall time to load the file and answer once; median of five processes, with the extremes.

    The file is in the system's cache by then. Raises as `peak_memory` does.
    """
    taken = sorted(ns / 1e6 for _, ns in _children(path, inputs, _how(runtime, reopen), threads, timeout_s, 5))
    note = "load and first answer in a fresh process, imports not counted"
    return Measurement(taken[len(taken) // 2], taken[0], taken[-1], len(taken), "ms", "measured", target, note)


def _how(runtime: str, reopen: str) -> str:
    """ "onnxruntime", or "torch@paretoprune.pipeline.targets:loader"."""
    return f"{runtime}@{reopen}" if reopen else runtime


def _children(
    path: Path, inputs: Mapping[str, NDArray[Any]], runtime: str, threads: int, timeout_s: float, count: int
) -> list[tuple[int, int]]:
    """(growth in bytes, nanoseconds to the first answer) of each process."""
    if path.suffix == ".onnx":
        read_model(path)
    with tempfile.TemporaryDirectory(prefix="paretoprune-") as folder:
        archive = Path(folder) / "inputs.npz"
        with archive.open("wb") as file:
            np.savez(file, *inputs.values())
        return [_child(path, archive, list(inputs), runtime, threads, timeout_s) for _ in range(count)]


def _environment(runtime: str) -> dict[str, str] | None:
    """What a reference names is found where this process finds it."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)} if "@" in runtime else None


def _child(
    path: Path, archive: Path, names: list[str], runtime: str, threads: int, timeout_s: float
) -> tuple[int, int]:
    command = [sys.executable, "-P", str(CHILD), runtime, str(path), str(archive), str(threads), "3", *names]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, env=_environment(runtime)
        )
    except subprocess.TimeoutExpired as error:
        raise TargetError(f"{path} took over {timeout_s:g} s in a fresh process, which was ended") from error
    if done.returncode != 0:
        last = " ".join(done.stderr.split())[-400:] or f"exit status {done.returncode}"
        raise TargetError(f"{path} failed in a fresh process: {last}")
    growth, first = done.stdout.split()[-2:]
    return int(growth), int(first)
