"""What a target may say of itself beyond `core.protocols.Target`, and what holds where it does not.

`suffix`: how its files' names end (".onnx"). `device`: where it computes ("cpu"; "cuda:0"). `clock()`: the clock that
tells how long its work takes, in place of CPU time (one thread) or wall time (several). `layer(spec, copies,
precision)`: a call that runs copies of one layer, where its files are not ONNX. `reopen`: "pkg.mod:function", called
with (name, threads) in a fresh process, gives a function that loads a file (`targets.fresh`); without it there is no
memory figure and no cold start. `compiles`: True where the first call takes long. `describe()`: its settings in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paretoprune.core.errors import UsageError
from paretoprune.core.protocols import Target
from paretoprune.targets.fingerprint import fingerprint_id
from paretoprune.targets.latency import Timing


def suffix_of(target: Target) -> str:
    return str(getattr(target, "suffix", ".onnx"))


def checked_suffix(target: str, path: Path, suffix: str) -> Path:
    """Other parts of the program know a file's kind by its ending."""
    if path.suffix != suffix:
        raise UsageError(f"{path}: files of target {target!r} end in {suffix}; give {path.with_suffix(suffix).name!r}")
    return path


def device_of(target: Target) -> str:
    """ "cpu", or a GPU as in "cuda:0"."""
    return str(getattr(target, "device", "cpu"))


def timing_for(target: Target, **settings: Any) -> Timing:
    """By the target's own clock where it has one, else by CPU time for one thread and wall time for several."""
    clock = getattr(target, "clock", None)
    if clock is not None:
        return Timing(**{**settings, "basis": "wall", "clock": clock()})
    return Timing(**{**settings, "basis": "cpu" if target.threads == 1 else "wall"})


def describe(target: Target) -> Mapping[str, str]:
    """Its settings: threads, device, batch, precisions, the ending of its files, and the fingerprint's id."""
    known = {
        "target": target.name,
        "threads": str(target.threads),
        "device": device_of(target),
        "batch": "any",
        "precisions": ", ".join(target.precisions),
        "files": suffix_of(target),
        "fingerprint": fingerprint_id(target.fingerprint()),
    }
    own = getattr(target, "describe", None)
    return {**known, **(own() if own is not None else {})}
