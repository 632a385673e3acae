"""Front members are measured a second time at the end: bursts of a noisy machine last seconds, not minutes."""

from __future__ import annotations

from typing import Any

from paretoprune.pipeline import hardware, results
from paretoprune.pipeline.artefact import measure
from paretoprune.pipeline.study import Study

TIMED = ("latency_ms", "wall_ms", "speedup", "energy_mj", "energy_gross_mj", "idle_w", "baseline_latency_ms")


def confirm(study: Study) -> None:
    """Measure every member of the front again, once per run folder."""

    def again() -> dict[str, Any]:
        members = [m for m in results.front_of(study.folder).members if not m.original]
        with study.progress.stage("measuring the front again", len(members)) as bar:
            taken = {}
            for member in members:
                record = study.folder.done("candidate", member.name) or {}
                tuned = "batch" in record
                figures = (
                    hardware.measure(study, record, steady=True) if tuned else measure(study, member.name, member.path)
                )
                taken[member.name] = {k: m.to_json() for k, m in figures.items() if k in TIMED}
                bar.advance(note=member.name)
        return taken

    study.once("confirmation", "front", again)
