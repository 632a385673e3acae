"""The front as a table for a terminal, at 80 columns or more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from paretoprune.core.candidate import Candidate
from paretoprune.core.front import Front
from paretoprune.core.measurement import Measurement
from paretoprune.core.quality import SHIFTS
from paretoprune.report.metrics import ENERGY, METRICS, Metric, figure, metric_of, quality_in, with_unit
from paretoprune.report.text import MISSING, clean, half_width, has_interval, number

_COLUMNS = (
    ("accuracy", "accuracy %"),
    ("latency_ms", "latency ms"),
    ("speedup", "speed"),
    ("size_bytes", "size"),
    ("energy_mj", "energy\nmJ"),
)
_SHORT = {
    "macro_precision": "prec. %",
    "macro_recall": "recall %",
    "macro_f1": "F1 %",
    "loss": "loss",
    "recovery_ratio": "recov. ×",
    "calibration_error": "ECE %",
    "generalisation_gap": "gap pt",
} | {f"robust_{how}": f"{how} %" for how in SHIFTS}
LEGEND = "● on the front  ► chosen  ! misses a limit  ~ estimated  ±, ( ) 95 % interval"


QUALITY_NOTE = (
    "test set; precision, recall and F1 are means over the classes; recov.: the original's loss over this one's; "
    "ECE: expected calibration error; gap: accuracy on training samples less that on the test set; "
    "fgsm, pgd, noise, blur, contrast: accuracy on inputs so disturbed"
)

_ENERGY_SHORT = {
    "energy_mj": "energy",
    "energy_gross_mj": "with idle",
    "energy_per_correct_mj": "per correct",
    "power_w": "power",
    "idle_w": "idle",
    "w_per_frame": "per frame",
    "fps": "frames",
}
ENERGY_NOTE = (
    "~ estimated; energy of one inference, idle power subtracted where a meter was read; per correct: over the "
    "accuracy; power: while running one inference after another; per frame: that over the frames per second"
)


class HasCandidates(Protocol):
    """A front."""

    @property
    def candidates(self) -> Sequence[Candidate]: ...


def safe(text: object, limit: int = 120) -> str:
    """Untrusted text for a rich markup string: no control characters, no markup."""
    return escape(clean(text, limit))


def rows_of(front: HasCandidates | Iterable[Candidate]) -> tuple[Candidate, ...]:
    return tuple(front) if isinstance(front, Iterable) else tuple(front.candidates)


def front_table(front: HasCandidates | Iterable[Candidate], chosen: str = "") -> Table:
    """One line per candidate, in the order given. Columns that nobody has measured are left out.

    Marks: `●` on the front, `!` misses a limit, `►` chosen. `~` and "est." stand at what was only estimated.
    """
    rows = rows_of(front)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0, caption=LEGEND, caption_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("name", overflow="fold", min_width=12, max_width=40)
    table.add_column("kind", no_wrap=True)
    titles = [*_COLUMNS, *((key, _SHORT[key]) for key in _named(front))]
    shown = [(metric_of(key), title) for key, title in titles if any(key in row.measurements for row in rows)]
    labelled = {metric.key for metric, _ in shown if _all_estimated(metric.key, rows)}
    for metric, title in shown:
        table.add_column(f"{title} est." if metric.key in labelled else title, justify="right", no_wrap=True)
    for row in rows:
        cells = [Text(_cell(metric, row.measurements.get(metric.key), metric.key in labelled)) for metric, _ in shown]
        style = "bold" if row.name == chosen else ("" if row.on_front else "dim")
        table.add_row(
            _marks(row, chosen), Text(clean(row.name, 120)), Text(clean(row.precision, 12)), *cells, style=style
        )
    return table


def _named(front: HasCandidates | Iterable[Candidate]) -> list[str]:
    """Figures of quality that a limit or an objective of this front names."""
    named = [limit.about.key for limit in front.limits] + list(front.objectives) if isinstance(front, Front) else []
    return [key for key in dict.fromkeys(named) if key in _SHORT]


def quality_table(front: HasCandidates | Iterable[Candidate], chosen: str = "") -> Table:
    """One line per candidate: every figure of its answers that somebody has; and why one could not be taken."""
    rows = rows_of(front)
    shown = quality_in(rows)
    absent = {f"{_SHORT.get(k, k)}: {clean(why, 200)}" for row in rows for k, why in row.absent.items()}
    notes = "\n".join(escape(text) for text in [QUALITY_NOTE, *sorted(absent)])
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0, caption=notes, caption_justify="left")
    table.add_column("name", overflow="fold", min_width=8, max_width=40)
    for metric in shown:
        table.add_column(_SHORT[metric.key], justify="right", no_wrap=True)
    for row in rows:
        taken = [row.measurements.get(metric.key) for metric in shown]
        cells = [Text(MISSING if m is None else figure(x, m).value) for x, m in zip(shown, taken, strict=True)]
        style = "bold" if row.name == chosen else ("" if row.on_front else "dim")
        table.add_row(Text(clean(row.name, 120)), *cells, style=style)
    return table


def energy_table(front: HasCandidates | Iterable[Candidate], chosen: str = "") -> Table:
    """One line per candidate: energy, power and frames per second. `~` stands at every figure that was estimated."""
    rows = rows_of(front)
    known = [metric_of("energy_mj"), *ENERGY]
    shown = [metric for metric in known if any(metric.key in row.measurements for row in rows)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0, caption=ENERGY_NOTE, caption_justify="left")
    table.add_column("name", overflow="fold", min_width=8, max_width=40)
    for metric in shown:
        table.add_column(f"{_ENERGY_SHORT[metric.key]}\n{metric.unit}", justify="right", no_wrap=True)
    for row in rows:
        taken = [row.measurements.get(metric.key) for metric in shown]
        cells = [Text(_cell(metric, m, labelled=True)) for metric, m in zip(shown, taken, strict=True)]
        style = "bold" if row.name == chosen else ("" if row.on_front else "dim")
        table.add_row(Text(clean(row.name, 120)), *cells, style=style)
    return table


def summary(front: HasCandidates | Iterable[Candidate], chosen: str = "") -> Text:
    """One sentence: how many were measured, how many are on the front, what the chosen one gives for what."""
    rows = rows_of(front)
    text = Text(f"{len(rows)} measured, {sum(row.on_front for row in rows)} on the front")
    row = next((r for r in rows if r.name == chosen), None) if chosen else None
    if row is None:
        return text
    text.append(f"; chosen {clean(row.name, 120)}: {', '.join(_gains(row, rows))}")
    return text


def _gains(row: Candidate, rows: Sequence[Candidate]) -> list[str]:
    original = next((r for r in rows if r.original), None)
    said = []
    for metric in METRICS:
        m = row.measurements.get(metric.key)
        if m is None or metric.key not in ("accuracy", "speedup", "size_bytes"):
            continue
        shown = figure(metric, m)
        base = original.value(metric.key) if original is not None and original is not row else None
        if metric.key == "speedup":
            said.append(f"{'~' if shown.estimated else ''}{shown.value}× the original's speed")
        elif metric.key == "accuracy" and base is not None:
            said.append(f"accuracy {shown.value} % ({(m.value - base) * 100:+.1f} points)".replace("-", "−"))
        else:
            said.append(with_unit(shown.value, shown.unit))
    return said


def _marks(row: Candidate, chosen: str) -> Text:
    return Text(
        ("►" if row.name == chosen else " ") + ("●" if row.on_front else " ") + (" " if row.meets_limits else "!")
    )


def _all_estimated(key: str, rows: Sequence[Candidate]) -> bool:
    return all(m.status != "measured" for row in rows if (m := row.measurements.get(key)))


def _cell(metric: Metric, m: Measurement | None, labelled: bool) -> str:
    """Figures without the unit that the heading names; bytes and speedups carry theirs.

    `labelled`: the heading already says that the whole column is estimated.
    """
    if m is None:
        return MISSING
    shown = figure(metric, m)
    mark = "~" if shown.estimated else ""
    tail = " est." if shown.estimated and not labelled else ""
    if metric.key == "accuracy":
        interval = f" ({m.low * 100:.1f}–{m.high * 100:.1f})" if has_interval(m) else ""
        return f"{mark}{shown.value}{interval}{tail}"
    if metric.key == "latency_ms":
        return f"{mark}{shown.value}" + (f" ±{_spread(m.value, half_width(m))}" if has_interval(m) else "") + tail
    if metric.key in ("size_bytes", "speedup"):
        return mark + with_unit(shown.value, shown.unit) + tail
    return f"{mark}{shown.value}{tail}"


def _spread(value: float, half: float) -> str:
    """The half width to the digits of the value: 0.412 ±0.012."""
    digits = len(number(value).partition(".")[2])
    text = f"{half:.{digits}f}"
    return text if float(text) > 0 else number(half)
