"""The table for a terminal, and the summary under it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from paretoprune.core.candidate import Candidate
from paretoprune.core.derived import with_derived
from paretoprune.core.front import Front
from paretoprune.core.measurement import Measurement
from paretoprune.report.terminal import energy_table, front_table, safe, summary


def shown(what: Table | Text, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False, legacy_windows=False)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def line(text: str, name: str) -> str:
    return next(row for row in text.splitlines() if f" {name} " in row)


def test_the_table_fits_80_columns_with_nothing_cut(front: Front) -> None:
    text = shown(front_table(front, "half-int8"))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    row = line(text, "half-int8")
    for part in ("►●", "int8", "96.9 (95.9–97.4)", "0.400 ±0.012", "5.00×", "160 kB", "~6.00"):
        assert part in row, part


def test_marks_of_front_and_limits(front: Front) -> None:
    text = shown(front_table(front))
    assert "●!" in line(text, "original")
    assert "!" not in line(text, "half-int8")
    assert "►" not in text.replace("► chosen", "")


def test_estimates_are_labelled_in_the_heading_or_at_the_figure(front: Front) -> None:
    heading, _, rest = shown(front_table(front)).partition("original")
    assert "est." in heading
    assert "est." not in rest
    measured = {**front.candidates[1].measurements, "energy_mj": Measurement(3.0, 2.9, 3.1, 9, "mJ")}
    rows = [front.candidates[0], dataclasses.replace(front.candidates[1], measurements=measured)]
    text = shown(front_table(rows), 100)
    assert "~30.0 est." in line(text, "original")
    assert "est" not in line(text, "original-int8")


def test_the_table_of_energy_marks_every_estimate(front: Front) -> None:
    rows = [dataclasses.replace(r, measurements=with_derived(r.measurements)) for r in front.candidates]
    read = {"energy_mj": Measurement(3.0, 2.9, 3.1, 9, "mJ"), "wall_ms": Measurement(1.5, 1.4, 1.6, 9, "ms")}
    rows[1] = dataclasses.replace(rows[1], measurements=with_derived({**rows[1].measurements, **read}))
    text = shown(energy_table(rows), 100)
    found = {row.split()[0]: row for row in text.splitlines() if row.strip()}
    assert found["original"].count("~") == 3  # energy, per correct, per frame; nobody has timed the wall
    assert "~" not in found["original-int8"]
    assert "2.00" in found["original-int8"]
    assert "with idle" not in text
    assert "~ estimated" in text


def test_what_was_not_measured_is_a_dash_and_what_nobody_has_has_no_column(make: Callable[..., Candidate]) -> None:
    rows = [make("a", 0.9, 1.0), make("b", 0.8, 2.0)]
    some = [dataclasses.replace(rows[0], measurements={"accuracy": rows[0].measurements["accuracy"]}), rows[1]]
    assert line(shown(front_table(some)), "a").count("–") == 5  # four figures, and the one in the interval
    bare = [dataclasses.replace(r, measurements={"accuracy": r.measurements["accuracy"]}) for r in rows]
    assert "latency" not in shown(front_table(bare))


def test_the_summary_names_what_was_won_and_lost(front: Front) -> None:
    text = " ".join(shown(summary(front, "half-int8")).split())
    assert text == (
        f"5 measured, {len(front.members)} on the front; chosen half-int8: "
        "accuracy 96.9 % (−1.1 points), 5.00× the original's speed, 160 kB"
    )
    assert shown(summary([])).strip() == "0 measured, 0 on the front"


@pytest.mark.parametrize("text", ["[red]x[/red]", "\x1b[31mx", "[link=http://x]y[/link]"])
def test_safe_text_is_shown_as_it_was_written(text: str) -> None:
    printed = shown(Text.from_markup(safe(text))).strip()
    assert printed == text.replace("\x1b", "\\x1b")
