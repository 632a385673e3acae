"""Members copied out of a run folder, each compared with its seal first."""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path

from paretoprune.core.candidate import Candidate
from paretoprune.core.errors import FileError, UsageError
from paretoprune.pipeline.results import read_front
from paretoprune.store.files import atomic, digest, storing
from paretoprune.store.run import RunFolder

FASTEST = {"fastest": "latency", "smallest": "size"}


def picked(run: str | Path, pick: str) -> Candidate:
    """ "knee", "fastest", "smallest" (of the members that meet the limits), or the candidate of that name."""
    front = read_front(run)
    if pick == "knee":
        return front.knee()
    if pick in FASTEST:
        return front.best(FASTEST[pick])
    named = {c.name: c for c in front.candidates}
    if pick not in named:
        near = difflib.get_close_matches(pick, named, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"no candidate {pick!r}: give knee, fastest, smallest, or one of {', '.join(named)}{hint}")
    return named[pick]


def copy_file(run: str | Path, member: Candidate, out: Path | None = None, force: bool = False) -> Path:
    """The exported file that was measured. Raises FileError if it was altered or `out` holds something else."""
    view = RunFolder.read(run)
    source = view.verify(member.path.relative_to(view.path).as_posix())
    target = Path(out or source.name).absolute()
    if target.is_dir():
        target = target / source.name
    _copy(source, target, force)
    return target


def copy_torch(run: str | Path, member: Candidate, out: Path | None = None, force: bool = False) -> Path:
    """The folder that `pp.load` reads: weights in fp32, before quantization. Raises UsageError for the original."""
    from paretoprune.pipeline.files import MANIFEST, WEIGHTS

    view = RunFolder.read(run)
    record = view.done("candidate", member.name)
    network = record["network"] if record is not None else ""
    if network == "original":
        raise UsageError(f"{member.name} is the network that you gave; export it --to file, or pick another")
    target = Path(out or network).absolute()
    for part in (WEIGHTS, MANIFEST):
        _copy(view.verify(f"members/{network}/{part}"), target / part, force)
    return target


def _copy(source: Path, target: Path, force: bool) -> None:
    if target.exists() and not force:
        if target.is_file() and digest(target) == digest(source):
            return
        raise FileError(f"{target} exists and is another file; give --force to replace it, or another --out")
    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as part:
        shutil.copyfile(source, part)
    if digest(target) != digest(source):
        raise FileError(f"{target} differs from {source} after copying; check the disk and export again")
