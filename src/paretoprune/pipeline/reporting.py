"""From a run folder to the page, the recommended member and the words that go with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from paretoprune.core.candidate import Candidate
from paretoprune.core.errors import UnreachableLimitError
from paretoprune.core.front import Front
from paretoprune.pipeline import cost_model
from paretoprune.pipeline.results import front_of
from paretoprune.report import ReportData, RunFacts
from paretoprune.report.html import write_report
from paretoprune.store.run import RunFolder, RunView

REPORT = "report.html"
_LATENCY = (
    "Batch 1, {threads} thread(s), on the exported file. Each file is timed in turns with the original (A B, B A), "
    "reloaded every ten pairs; the figure is the 20th percentile of {clock}, sampled until its 95 % bootstrap interval "
    "is narrow. The speedup is the mean of the middle half of the paired ratios."
)
_ACCURACY = (
    "Share of the test set ({test} samples), read once for each exported file, with its 95 % Wilson interval. "
    "Choices and limits use the validation set ({validation} samples)."
)
_SIZE = (
    "Size is the bytes of the exported file. Peak memory is what a fresh process grows by when it loads and runs it."
)
_ENERGY = (
    "Read from a meter, or from counters where the machine has any, with the idle power subtracted; else CPU seconds "
    "times watts per core, marked as estimated. What was read stands at each figure."
)

_VERIFIED = (
    "{fresh} of {files} files answered {samples} validation samples in a process of their own, and were compared with "
    "the network that they came from ({judged}). A file that disagrees is no candidate."
)


def recommend(front: Front) -> tuple[Candidate | None, str]:
    """With limits the fastest network that meets them, else the knee; and why, in one sentence. None if none does."""
    try:
        chosen = front.best("latency") if front.limits else front.knee()
    except UnreachableLimitError as error:
        return None, f"no member is chosen: {error}"
    if front.limits:
        judged = front.judge == "validation" and any(limit.about.quality for limit in front.limits)
        where = " (judged on the validation set)" if judged else ""
        return chosen, f"{chosen.name} is chosen: the fastest that meets {front.limits}{where}."
    axes = " and ".join("validation accuracy" if k == "accuracy" else k.split("_")[0] for k in front.objectives)
    return chosen, (
        f"{chosen.name} is chosen: of the {len(front.members)} members of the front it is the knee, the one farthest "
        f"from the straight line between the extremes in {axes}."
    )


def write(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run, finished or not (default: report.html in it). Raises FileError, StoreError."""
    view = RunFolder.read(folder)
    return write_report(report_data(view), view.path / REPORT if out is None else Path(out))


def report_data(view: RunView) -> ReportData:
    front = front_of(view)
    about = view.done("about", "run") or {}
    chosen, reason = recommend(front)
    title = f"{about.get('model', 'network')}: {view.path.name}"
    facts = RunFacts(
        machine=front.target,
        method=(*_method(about), *_verified(view)),
        stages=stages(view),
        notes=(reason, *notes(view, front)),
        failures=failures(view),
        folder=view.path,
    )
    return ReportData.of(front, title, about.get("axes", {}), "" if chosen is None else chosen.name, facts)


def _method(about: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    samples = {"test": "?", "validation": "?", **about.get("samples", {})}
    threads = str(about.get("target", {}).get("threads", "1"))
    clock = "CPU time" if threads == "1" else "wall time"
    return (
        ("Latency", _LATENCY.format(threads=threads, clock=clock)),
        ("Accuracy", _ACCURACY.format(**samples)),
        ("Size and memory", _SIZE),
        ("Energy", _ENERGY),
    )


def _verified(view: RunView) -> tuple[tuple[str, str], ...]:
    """How the files were checked; nothing for a run of an earlier version."""
    found = [record["verified"] for record in view.all("candidate").values() if "verified" in record]
    if not found:
        return ()
    by = Counter({"metric": "the task's metric"}.get(v["by"], v["by"]) for v in found)
    fresh, samples = sum(v["process"] == "fresh" for v in found), sorted({v["samples"] for v in found})
    judged = ", ".join(f"{count} by {how}" for how, count in by.most_common())
    return (("Verification", _VERIFIED.format(fresh=fresh, files=len(found), samples=samples[-1], judged=judged)),)


def stages(view: RunView) -> tuple[tuple[str, float], ...]:
    """(stage, wall seconds in all runs of this folder), in the order of first use."""
    spent: dict[str, float] = {}
    for record in view.all("seconds").values():
        spent[record["stage"]] = spent.get(record["stage"], 0.0) + record["wall_s"]
    return tuple(spent.items())


def notes(view: RunView, front: Front) -> tuple[str, ...]:
    """What a reader should know: of the model and the data, of the limits, of damaged lines, of a busy machine."""
    about = view.done("about", "run") or {}
    said = [str(note) for note in about.get("notes", ())]
    said += front.limits.already_met_by(front.original.measurements, front.judge)
    for short in view.all("out of budget").values():
        said.append(f"the budget was spent after {short['carried out']} of {short['planned']} planned candidates")
    if view.quarantined:
        said.append(f"{view.quarantined} damaged line(s) of the journal were set aside in journal.quarantine")
    said += cost_model.told(view.done(cost_model.STAGE, cost_model.KEY))
    busy = [c.name for c in front.candidates if (m := c.measurements.get("latency_ms")) and m.note]
    if busy:
        said.append(
            f"the machine was busy while {len(busy)} of {len(front.candidates)} files were timed: wider intervals"
        )
    if meter := (view.identity or {}).get("meter"):
        energies = [m for c in front.candidates if (m := c.measurements.get("energy_mj"))]
        guessed = sum(m.status != "measured" for m in energies)
        if guessed:
            said.append(
                f"meter {meter!r} gave no energy for {guessed} of {len(energies)} files: an estimate stands in, and "
                "its note says why"
            )
    return tuple(said)


def failures(view: RunView) -> tuple[tuple[str, int], ...]:
    """(cause, count), most frequent first."""
    counts: dict[str, int] = {}
    for failure in view.all("failure").values():
        counts[failure["cause"]] = counts.get(failure["cause"], 0) + 1
    return tuple(sorted(counts.items(), key=lambda item: -item[1]))
