"""Names made harmless, and figures as people write them."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretoprune.core.measurement import Measurement
from paretoprune.report.metrics import figure, metric_of
from paretoprune.report.text import clean, clean_lines, duration, number


@given(st.text(st.characters()))
def test_clean_leaves_nothing_that_acts_on_a_display(text: str) -> None:
    shown = clean(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\ufeff")
    assert "\n" not in shown


@given(st.text(st.characters(categories=("L", "N", "P", "S")), max_size=200))
def test_clean_keeps_ordinary_text(text: str) -> None:
    assert clean(text) == text


def test_clean_spells_controls_out_so_that_two_names_stay_two() -> None:
    assert clean("a\x1b[31mb\u202ec\U000e0001") == "a\\x1b[31mb\\u202ec\\U000e0001"
    assert clean("a\x00") != clean("a\x01")
    assert clean("x" * 1000, 10) == "x" * 9 + "…"
    assert clean_lines("one\ntwo\x07") == "one\ntwo\\x07"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.0123"),
        (4.1249, "4.12"),
        (41.29, "41.3"),
        (412.9, "413"),
        (12345.0, "12,345"),
        (0.0, "0"),
        (-2.5, "−2.50"),
        (1.2e-7, "1.20e−07"),
        (math.nan, "not a number"),
        (math.inf, "∞"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(1e-3, 1e12))
def test_numbers_read_back_within_half_a_digit(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.005)


def test_durations() -> None:
    assert [duration(s) for s in (0.0, 0.42, 12.34, 59.96, 185, 7620, -1, math.nan)] == [
        "under 10 ms",
        "0.420 s",
        "12.3 s",
        "1 min 00 s",
        "3 min 05 s",
        "2 h 07 min",
        "–",
        "–",
    ]


def test_a_figure_carries_unit_interval_and_whether_it_was_estimated() -> None:
    m = Measurement(112_400.0, 110_000.0, 115_000.0, 3, "B", "estimated")
    assert str(figure(metric_of("size_bytes"), m)) == "~112 kB (110 to 115) estimated"
    share = Measurement(0.9725, 0.96, 0.981, 500, "share")
    assert str(figure(metric_of("accuracy"), share)) == "97.2 % (96.0 to 98.1)"
    assert figure(metric_of("macs"), Measurement.exact(40.1e6, "MACs")).interval == ""
