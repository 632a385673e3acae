"""An exported file in a fresh process: what it answers there, how far that grows, how long its first answer takes.

What is right in the process that wrote a file may be wrong in the next one, and a file that crashes or hangs must not
take a search with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from paretoprune.core.errors import TargetError
from paretoprune.core.protocols import Target
from paretoprune.targets.onnx_file import read_model

CHILD = Path(__file__).with_name("memory_child.py")
TIMEOUT_S = 120.0
RUNS = 3
"""Of the one sample, while memory is watched."""

RUNTIMES = ("onnxruntime", "openvino")
"""Those that the child process can load a file with; other targets say how with `reopen`."""

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Opener:
    """How a fresh process loads a file. `reopen`: "pkg.mod:function", called with (name, threads), gives a function
    that loads; empty for the runtimes that the child knows by name."""

    name: str
    threads: int = 1
    reopen: str = ""


ONNX_RUNTIME = Opener(RUNTIMES[0])


@dataclass(frozen=True)
class Fresh:
    """`grown`: resident bytes over the state after the imports, with one sample; -1 where the system keeps no record.
    `first_ns`: load and first answer of one sample. `outputs`: one tuple for each batch."""

    grown: int
    first_ns: int
    outputs: tuple[tuple[NDArray[Any], ...], ...] = ()


def opener_of(target: Target) -> Opener | None:
    """None for a target that no other process can open: one of the user's own without `reopen`."""
    reopen = str(getattr(target, "reopen", "") or "")
    if reopen or target.name in RUNTIMES:
        return Opener(target.name, target.threads, reopen)
    return None


def in_fresh_process(
    path: Path, sample: Feed, batches: Sequence[Feed] = (), *, opener: Opener, timeout_s: float = TIMEOUT_S
) -> Fresh:
    """Load the file, run `sample` three times, then answer `batches`, all in a process of its own.

    Raises FileError for an ONNX file that cannot be trusted, TargetError with the child's last words if it fails,
    crashes, or outlives `timeout_s`.
    """
    if path.suffix == ".onnx":
        read_model(path)
    with tempfile.TemporaryDirectory(prefix="paretoprune-") as folder:
        place = Path(folder)
        _save(place / "inputs.npz", [sample, *batches])
        job = {
            "name": opener.name,
            "reopen": opener.reopen,
            "threads": opener.threads,
            "model": str(path.absolute()),
            "runs": RUNS,
            "parent": os.getpid(),
            "feeds": [list(feed) for feed in (sample, *batches)],
        }
        (place / "job.json").write_text(json.dumps(job), "utf-8")
        # What `reopen` names is found there where this process would find it.
        found = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)} if opener.reopen else {}
        told = _run([sys.executable, "-P", str(CHILD), folder], path, timeout_s, {**os.environ, **found})
        try:
            grown, first = told.split()[-2:]
            return Fresh(int(grown), int(first), _outputs(place / "outputs.npz", len(batches)))
        except (ValueError, OSError, KeyError, BadZipFile) as error:
            raise TargetError(f"{path} gave no answer in a fresh process ({error})") from error


def _save(file: Path, feeds: Sequence[Feed]) -> None:
    arrays = {f"{n}_{i}": value for n, feed in enumerate(feeds) for i, value in enumerate(feed.values())}
    with file.open("wb") as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]


def _outputs(file: Path, batches: int) -> tuple[tuple[NDArray[Any], ...], ...]:
    if not batches:
        return ()
    with np.load(file, allow_pickle=False) as archive:
        counts = [sum(key.startswith(f"{n}_") for key in archive.files) for n in range(batches)]
        return tuple(tuple(archive[f"{n}_{i}"] for i in range(count)) for n, count in enumerate(counts))


def _run(command: list[str], path: Path, timeout_s: float, environment: Mapping[str, str]) -> str:
    """In a session of its own: Ctrl-C is for this process, and would pass for a failure of the file in the other."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=dict(environment),
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise TargetError(f"{path} took over {timeout_s:g} s in a fresh process, which was ended") from error
    except OSError as error:
        raise TargetError(f"no process could be started to load {path} in: {error.strerror or error}") from error
    if done.returncode != 0:
        last = " ".join(done.stderr.split())[-400:] or _status(done.returncode)
        raise TargetError(f"{path} failed in a fresh process: {last}")
    return done.stdout


def _status(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    names = {s.value: s.name for s in signal.Signals}
    return f"it was ended by {names.get(-code, f'signal {-code}')}"
