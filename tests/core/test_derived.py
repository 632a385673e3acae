"""Figures that follow from others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretoprune.core.derived import DERIVED, with_derived
from paretoprune.core.measurement import Measurement, Status

WALL = Measurement(4.0, 3.9, 4.2, 50, "ms")
ENERGY = Measurement(20.0, 18.0, 22.0, 5, "mJ", note="read from bench")
ACCURACY = Measurement(0.8, 0.75, 0.85, 100, "share")


def test_by_hand() -> None:
    found = with_derived({"wall_ms": WALL, "energy_mj": ENERGY, "accuracy": ACCURACY})
    assert {key: (found[key].value, found[key].unit) for key in DERIVED} == {
        "fps": (pytest.approx(250.0), "1/s"),
        "power_w": (pytest.approx(5.0), "W"),
        "w_per_frame": (pytest.approx(5.0 / 250.0), "W/(frame/s)"),
        "energy_per_correct_mj": (pytest.approx(25.0), "mJ"),
    }
    assert found["power_w"].note == "read from bench"
    assert all(m.status == "measured" for m in found.values())


@pytest.mark.parametrize("key", ["power_w", "w_per_frame", "energy_per_correct_mj"])
def test_what_follows_from_an_estimate_is_one(key: str) -> None:
    guess = Measurement(20.0, 18.0, 22.0, 5, "mJ", "estimated")
    found = with_derived({"wall_ms": WALL, "energy_mj": guess, "accuracy": ACCURACY})
    assert found[key].status == "estimated"
    assert found["fps"].status == "measured"


def test_none_is_not_zero() -> None:
    assert with_derived({"wall_ms": WALL}).keys() == {"wall_ms", "fps"}
    assert with_derived({"energy_mj": ENERGY}).keys() == {"energy_mj", "w_per_frame"}
    never = Measurement(0.0, 0.0, 0.1, 100, "share")
    assert "energy_per_correct_mj" not in with_derived({"energy_mj": ENERGY, "accuracy": never})


def test_what_was_derived_before_is_made_again() -> None:
    old = with_derived({"wall_ms": WALL})
    assert with_derived({**old, "wall_ms": ENERGY})["fps"].value == pytest.approx(50.0)
    assert "fps" not in with_derived({"fps": old["fps"]})


spans = st.lists(st.floats(0.001, 1000), min_size=3, max_size=3).map(sorted)
statuses = st.sampled_from(["measured", "estimated"])


@given(spans, spans, statuses, statuses, st.floats(0, 1), st.floats(0, 1))
def test_every_pair_of_true_values_lies_in_the_interval(
    a: list[float], b: list[float], first: Status, second: Status, i: float, j: float
) -> None:
    energy = Measurement(a[1], a[0], a[2], 5, "mJ", first)
    wall = Measurement(b[1], b[0], b[2], 5, "ms", second)
    power = with_derived({"energy_mj": energy, "wall_ms": wall})["power_w"]
    true = (a[0] + i * (a[2] - a[0])) / (b[0] + j * (b[2] - b[0]))
    assert power.low * (1 - 1e-9) <= true <= power.high * (1 + 1e-9)
    assert power.low <= power.value <= power.high
    assert (power.status == "estimated") == ("estimated" in (first, second))
