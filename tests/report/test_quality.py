"""Figures of the answers and explanations on the page and in the terminal, made harmless."""

from __future__ import annotations

import dataclasses
import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from paretoprune.core.front import Front
from paretoprune.core.limits import Limits
from paretoprune.core.measurement import Measurement
from paretoprune.core.why import AxisWhy, ClassWhy, Why
from paretoprune.report import ReportData, html
from paretoprune.report.cuts import HIGH, WIDE, cuts
from paretoprune.report.html import render
from paretoprune.report.terminal import front_table, quality_table

EVIL = "<img src=x onerror=alert(1)>\x1b[31m"
CURVE = ((4, 0.4), (8, 0.1), (16, 0.0))


@pytest.fixture(autouse=True)
def _no_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "_plotly", lambda: "var Plotly;")


@pytest.fixture
def told(data: ReportData) -> ReportData:
    """The page's rows with F1 and calibration, and an explanation of the two members that share a plan."""
    more = {
        "macro_f1": Measurement(0.912, 0.9, 0.93, 500, "share"),
        "recovery_ratio": Measurement(0.83, 0.7, 0.9, 500, "x"),
        "robust_fgsm": Measurement(0.61, 0.55, 0.66, 256, "share", note=f"eps 8/255 {EVIL}"),
        "validation_macro_f1": Measurement(0.555, 0.5, 0.6, 500, "share"),
    }
    rows = tuple(
        dataclasses.replace(row, measurements={**row.measurements, **more}, absent={"loss": f"not finite {EVIL}"})
        for row in data.rows
    )
    axes = (AxisWhy("layer1.conv1", 8, 16, 1200, 50_000, CURVE), AxisWhy("layer2.conv1", 16, 32, None, None))
    paid = (ClassWhy(3, 40, 38, 30, (8, 1, 7)),)
    whys = {
        name: Why(name, "fp32", False, None, None, axes, 1, (), paid, f"reconstructed {EVIL}", unknown=(EVIL,))
        for name in ("half", "half-int8")
    }
    return dataclasses.replace(data, rows=rows, whys=whys)


def test_the_page_shows_and_explains(told: ReportData) -> None:
    page = render(told)
    words = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    for expected in (
        "The answers in detail",
        "91.2 %",
        "0.830×",
        "What could not be taken",
        "8 of 16 −1.20 k parameters, −50.0 k MACs",
        "Classes that lost most in half-int8",
        "taken for 8: 7, before 1",
        "−20.0 points",
        "Recovery: reconstructed",
        "not known",
    ):
        assert expected in words, expected
    assert "55.5" not in words  # the validation set's figures are for limits


def test_nothing_that_comes_from_a_run_is_markup(told: ReportData) -> None:
    page = render(told)
    assert "<img" not in page
    assert "\x1b" not in page
    assert page.count("&lt;img src=x") >= 4
    HTMLParser().feed(page)


def test_a_curve_falls_from_left_to_right_within_its_box_and_the_dot_is_on_it(told: ReportData) -> None:
    shared = next(cut for cut in cuts(told) if len(cut.rows) == 2)
    curve = shared.bars[0].curve
    assert curve is not None
    points = [tuple(map(float, pair.split(","))) for pair in curve.points.split()]
    assert all(0 <= x <= WIDE and 0 <= y <= HIGH for x, y in points)
    assert points == sorted(points)
    assert [y for _, y in points] == sorted(y for _, y in points)
    assert (curve.x, curve.y) == points[1]
    assert shared.bars[1].curve is None


def test_without_figures_there_is_no_table(data: ReportData) -> None:
    assert "The answers in detail" not in render(data)


def printed(table: object) -> str:
    out = io.StringIO()
    Console(file=out, width=100, highlight=False).print(table)
    return out.getvalue()


def test_the_terminal_has_a_second_table_and_names_what_limits_name(told: ReportData) -> None:
    text = printed(quality_table(told.rows, "half"))
    assert "F1 %" in text
    assert "91.2" in text
    assert "fgsm %" in text
    assert "\x1b" not in text
    assert "loss: not finite" in text.replace("\n", " ")
    front = Front.of(told.rows, Limits.parse(["f1 drop <= 5 points"]))
    assert "F1 %" in printed(front_table(front))
    assert "F1 %" not in printed(front_table(Front.of(told.rows)))
