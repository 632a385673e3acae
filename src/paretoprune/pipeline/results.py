"""A run folder, finished or not, as a Front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from paretoprune.core.candidate import Candidate
from paretoprune.core.derived import with_derived
from paretoprune.core.errors import FileError
from paretoprune.core.front import OBJECTIVES, Front, metric_key
from paretoprune.core.limits import Limits
from paretoprune.core.measurement import Measurement
from paretoprune.core.plan import Plan
from paretoprune.pipeline.why import explain
from paretoprune.store.run import RunFolder, RunView

COUNTED = ("size_bytes", "memory_bytes", "macs", "parameters")


def read_front(path: str | Path) -> Front:
    """The front of whatever a run folder holds by now; also while it is being written, and after a crash.

    Raises FileError where there is no run, or where not even the original has been measured.
    """
    return front_of(RunFolder.read(path))


def front_of(view: RunView) -> Front:
    records = view.all("candidate")
    if not any(r["original"] for r in records.values()):
        raise FileError(f"{view.path}: the original is not measured yet, so there is no front; run it again to go on")
    about = view.done("about", "run") or {}
    settings = (view.identity or {}).get("settings", {})
    candidates = [_candidate(view, name, record) for name, record in records.items()]
    limits = Limits.parse(settings.get("limits", []))
    return Front.of(
        candidates,
        limits,
        _objectives(settings.get("objectives", OBJECTIVES), limits),
        target=about.get("target", {}),
    )


def _objectives(chosen: Sequence[str], limits: Limits) -> tuple[str, ...]:
    """What was asked for, and every counted cost that a limit names: else what meets it may be dominated."""
    named = [limit.about.key for limit in limits if limit.about.key in COUNTED]
    return tuple(dict.fromkeys([*map(metric_key, chosen), *named]))


def _candidate(view: RunView, name: str, record: Mapping[str, Any]) -> Candidate:
    network = record["network"]
    return Candidate(
        name=name,
        plan=Plan.from_json(record["plan"]),
        precision=record["precision"],
        path=view.artefact(record["file"]),
        measurements=_figures(record["measurements"], (view.done("confirmation", "front") or {}).get(name, {})),
        provenance=view.done("network", network) or {},
        original=record["original"],
        loader=None if network == "original" else _loader(view, network),
        explainer=partial(explain, view, name),
        absent=record.get("absent") or {},
        threads=int(record.get("threads") or (view.identity or {}).get("settings", {}).get("threads", 1)),
        batch=int(record.get("batch", 1)),
    )


def _figures(taken: Mapping[str, Any], again: Mapping[str, Any]) -> dict[str, Measurement]:
    """What was measured, joined with the second take where there is one, and what follows from that."""
    first, second = ({k: Measurement.from_json(m) for k, m in take.items()} for take in (taken, again))
    return with_derived({**second, **{k: _joined(m, second[k]) if k in second else m for k, m in first.items()}})


def _joined(first: Measurement, second: Measurement) -> Measurement:
    """An estimate that had to stand in for a meter is not mixed with what the meter read."""
    if first.status == second.status:
        return first.joined(second)
    return first if first.status == "measured" else second


def _loader(view: RunView, network: str) -> Callable[[], nn.Module]:
    return partial(_load, view, network)


def _load(view: RunView, network: str) -> nn.Module:
    from paretoprune.pipeline import files

    for part in (files.MANIFEST, files.WEIGHTS):
        view.verify(f"members/{network}/{part}")
    return files.load(view.path / "members" / network).model
