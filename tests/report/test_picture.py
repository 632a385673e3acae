"""Step lines, ranges and limits of the pictures."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretoprune.core.candidate import Candidate
from paretoprune.core.front import Front
from paretoprune.core.limit_grammar import Limit
from paretoprune.core.measurement import Measurement
from paretoprune.report import ReportData
from paretoprune.report.bounds import limit_facts, limit_line
from paretoprune.report.picture import corners, panels, staircase
from paretoprune.report.svg import draw, ticks

points = st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 100)), max_size=20)


@given(points)
def test_the_staircase_holds_exactly_what_no_other_point_beats(given_points: list[tuple[float, float]]) -> None:
    stairs = set(staircase(given_points))
    for p in given_points:
        beaten = any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in given_points)
        assert (p in stairs) == (not beaten)


@given(points.filter(bool))
def test_the_line_is_level_then_up_and_never_goes_down(given_points: list[tuple[float, float]]) -> None:
    stairs = staircase(given_points)
    line = corners(stairs, 200.0)
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        assert (x0 == x1 and y1 > y0) or (y0 == y1 and x1 > x0)
    assert set(stairs) <= set(line)
    assert line[-1][0] == 200.0


@given(st.floats(1e-6, 1e6), st.floats(1.5, 1e4), st.booleans())
def test_ticks_lie_within_the_range(low: float, ratio: float, log: bool) -> None:
    high = low * ratio
    found = ticks((low, high), log)
    assert all(low * (1 - 1e-9) <= t <= high * (1 + 1e-9) for t in found)
    assert len(found) <= 15
    assert found == sorted(set(found))
    assert len(found) >= 2 or (log and ratio < 4)


def test_each_cost_has_a_picture_that_says_what_was_estimated(data: ReportData) -> None:
    latency, energy, size = panels(data)
    assert [p.metric.key for p in (latency, energy, size)] == ["latency_ms", "energy_mj", "size_bytes"]
    assert latency.x_title == "latency (ms, log scale)"
    assert "estimated" in energy.x_title
    assert "estimated" not in latency.x_title
    assert "kB" in size.x_title
    assert {p.row for p in latency.points} == set(range(len(data.rows)))


def test_a_row_without_the_cost_is_not_drawn_at_zero(data: ReportData) -> None:
    rows = list(data.rows)
    left = {k: v for k, v in rows[2].measurements.items() if k != "energy_mj"}
    nan = {**rows[3].measurements, "energy_mj": Measurement(float("nan"), 0, 0, 1, "mJ")}
    rows[2] = dataclasses.replace(rows[2], measurements=left)
    rows[3] = dataclasses.replace(rows[3], measurements=nan)
    energy = panels(dataclasses.replace(data, rows=tuple(rows)))[1]
    assert {p.row for p in energy.points} == {0, 1, 4}


def test_limits_become_lines_or_are_said_to_lie_outside(data: ReportData) -> None:
    latency, _, size = panels(data)
    assert latency.x_limit == pytest.approx(1.0)
    assert latency.y_limit == pytest.approx(96.0)
    assert size.x_limit is None
    assert size.outside == ("size <= 9 MB",)


@pytest.mark.parametrize(
    ("text", "metric", "bound"),
    [
        ("latency <= 5 ms", "latency_ms", 5.0),
        ("latency <= 0.25x", "latency_ms", 0.5),
        ("speedup >= 4x", "latency_ms", 0.5),
        ("accuracy drop <= 1 point", "accuracy", 0.97),
        ("accuracy >= 90 %", "accuracy", 0.9),
        ("energy <= 1 J", "energy_mj", 1000.0),
        ("memory <= 50 % of original", "memory_bytes", None),
    ],
)
def test_a_limit_in_absolute_terms(make: Callable[..., Candidate], text: str, metric: str, bound: float | None) -> None:
    line = limit_line(Limit.parse(text), make("original", 0.98, 2.0, original=True).measurements)
    assert line.metric == metric
    assert line.bound == (None if bound is None else pytest.approx(bound))


def test_every_row_says_which_limits_it_misses(front: Front) -> None:
    facts = limit_facts(front)
    assert set(facts.remarks) == {"original", "small"}
    assert "latency <= 0.5x" in facts.remarks["original"][0]
    assert "accuracy drop" in facts.remarks["small"][0]


def test_the_drawing_stays_inside_its_box(data: ReportData) -> None:
    for panel in panels(data):
        drawing = draw(panel)
        left, top, right, bottom = drawing.box
        for mark in drawing.marks:
            assert left <= mark.x <= right
            assert top <= mark.y <= bottom
            assert mark.bar_y is not None
            assert mark.bar_y[0] > mark.y > mark.bar_y[1]  # pixels grow downwards
        assert len(drawing.line.split()) == len(panel.steps)


def test_one_row_alone_can_be_drawn(data: ReportData) -> None:
    alone = dataclasses.replace(data, rows=data.rows[:1])
    for panel in panels(alone):
        assert draw(panel).marks
