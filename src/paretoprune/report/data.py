"""What a report is made of. Nothing here depends on a room other than core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paretoprune.core.candidate import Candidate
from paretoprune.core.front import Front
from paretoprune.core.why import Why
from paretoprune.report.bounds import LimitFacts, limit_facts


@dataclass(frozen=True)
class RunFacts:
    """Everything beside the figures. All of it is shown as plain text.

    `method`: (heading, text) on how the figures were taken. `stages`: (name, seconds). `notes`: sentences from the
    journal, e.g. quarantined lines. `failures`: (cause, count), one per cause. `machine`: the target's fingerprint.
    """

    machine: Mapping[str, str] = field(default_factory=dict)
    method: tuple[tuple[str, str], ...] = ()
    stages: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    failures: tuple[tuple[str, int], ...] = ()
    folder: Path | None = None


@dataclass(frozen=True)
class ReportData:
    """The input of the page. `rows` are all measured candidates; at most one is the original.

    `axes` gives the original size of each axis id, in the network's order; it shows what a member cut.
    `objectives` are the metrics that decided the front. `chosen` is the name of the recommended row, or empty.
    `whys` explains rows by name, where a run folder could tell.
    """

    title: str
    rows: tuple[Candidate, ...]
    axes: Mapping[str, int]
    objectives: tuple[str, ...] = ("accuracy", "latency_ms")
    limits: LimitFacts = field(default_factory=LimitFacts)
    chosen: str = ""
    facts: RunFacts = field(default_factory=RunFacts)
    whys: Mapping[str, Why] = field(default_factory=dict)

    @classmethod
    def of(
        cls, front: Front, title: str, axes: Mapping[str, int], chosen: str = "", facts: RunFacts | None = None
    ) -> ReportData:
        """The front with its limits put beside each row. Without `facts`, the machine is the front's target."""
        facts = RunFacts(machine=front.target) if facts is None else facts
        whys = {c.name: c.why() for c in front.candidates if c.explainer is not None}
        return cls(title, front.candidates, axes, front.objectives, limit_facts(front), chosen, facts, whys)

    @property
    def original(self) -> Candidate | None:
        return next((row for row in self.rows if row.original), None)

    @property
    def chosen_row(self) -> Candidate | None:
        return next((row for row in self.rows if row.name == self.chosen), None) if self.chosen else None


def removed(row: Candidate, axes: Mapping[str, int]) -> int:
    """Positions that the plan removed, over the axes whose original size is known."""
    return sum(axes[a] - len(kept) for a, kept in row.plan.kept.items() if a in axes)


def is_unpruned(row: Candidate, axes: Mapping[str, int]) -> bool:
    """Whether the network keeps everything: the original, or the original in another precision."""
    whole = not (row.plan.blocks or row.plan.sparsity)
    return whole and all(a in axes for a in row.plan.kept) and removed(row, axes) == 0


def display_kind(row: Candidate, axes: Mapping[str, int]) -> str:
    """One of original, unpruned (the original in another precision) and pruned."""
    if row.original:
        return "original"
    return "unpruned" if is_unpruned(row, axes) else "pruned"
