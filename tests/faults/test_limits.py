"""The limits group of the faults: each is refused, or said, in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paretoprune.core.candidate import Candidate
from paretoprune.core.errors import LimitError, UnreachableLimitError
from paretoprune.core.front import Front
from paretoprune.core.limits import Limits
from paretoprune.core.measurement import Measurement
from paretoprune.core.plan import Plan

pytestmark = pytest.mark.fault


def _candidate(name: str, latency_ms: float, *, original: bool = False) -> Candidate:
    measurements = {
        "accuracy": Measurement(0.9, 0.88, 0.92, 1000, "share"),
        "latency_ms": Measurement(latency_ms, latency_ms * 0.99, latency_ms * 1.01, 50, "ms"),
        "speedup": Measurement(2 / latency_ms, 1.98 / latency_ms, 2.02 / latency_ms, 50, "x"),
        "energy_mj": Measurement(12.0, 8.0, 16.0, 50, "mJ", "estimated", note="CPU seconds x 15 W per core"),
    }
    return Candidate(name, Plan(), "fp32", Path(name), measurements, original=original)


ORIGINAL = _candidate("original", 2.0, original=True)
FAST = _candidate("fast", 0.42)


def test_48_impossible_limit_names_the_nearest_reachable_value() -> None:
    limits = Limits.parse(["latency <= 0.01 ms"])
    said = limits.unreachable([ORIGINAL, FAST], ORIGINAL.measurements)
    assert said == (
        "latency <= 0.01 ms cannot be met: the fastest candidate takes 0.42 ms; raise the limit to at least 0.42 ms"
    )
    with pytest.raises(UnreachableLimitError, match=r"at least 0\.42 ms") as error:
        Front.of([ORIGINAL, FAST], limits).best("latency")
    assert error.value.exit_status == 3


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("latency <= 1 ms", "latency >= 2 ms"),
        ("latency < 1 ms", "latency >= 1000 us"),
        ("latency <= 5 ms", "latency <= 10 ms"),
        ("accuracy >= 90 %", "accuracy <= 0.8"),
    ],
)
def test_49_contradictory_limits_are_both_named(first: str, second: str) -> None:
    for pair in ([first, second], [second, "size <= 1 MB", first]):
        with pytest.raises(LimitError, match=r"contradict|twice") as error:
            Limits.parse(pair)
        assert repr(first) in str(error.value)
        assert repr(second) in str(error.value)


@pytest.mark.parametrize("number", ["0", "-1", "0.0", "-1e-9", "-0"])
@pytest.mark.parametrize(("metric", "unit"), [("latency", "ms"), ("size", "MB"), ("accuracy drop", "points")])
def test_50_zero_or_negative_names_the_field(metric: str, unit: str, number: str) -> None:
    with pytest.raises(LimitError, match=f"{metric} is {re.escape(number)}; it must be above 0"):
        Limits.parse([f"{metric} <= {number} {unit}"])


@pytest.mark.parametrize("number", ["nan", "NaN", "inf", "-inf", "Infinity", "1e999"])
def test_51_nan_and_infinity_name_the_field(number: str) -> None:
    with pytest.raises(LimitError, match=f"energy is {number}; give a finite number above 0"):
        Limits.parse([f"energy <= {number} mJ"])


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("latency <= 5", "5 what? add a unit, one of ms, s, us, x"),
        ("size <= 5", "5 what? add a unit, one of B, kB, MB, GB"),
        ("speedup >= 2", "2 what? add a unit, one of x"),
        ("macs <= 20000000", "20000000 what?"),
        ("accuracy drop <= 1", "1 what? add a unit, one of point, % of original"),
        ("accuracy drop <= 0.01", "0.01 what? add a unit, one of point, % of original"),
        ("accuracy drop <= 1 %", "1 % of what? write '1 point' or '1 % of original'"),
        ("latency <= 50 %", "50 % of what? write '50 % of original'"),
        ("accuracy >= 90", "a percentage or a share? write '90 %' or '0.9'"),
        ("accuracy >= 1", "a percentage or a share? write '100 %' or '0.01'"),
        ("accuracy >= 0.9 %", "a percentage or a share? write '0.9' for the share or '90 %'"),
        ("5", "no comparison; write '<metric> <= <number> <unit>'"),
    ],
)
def test_52_a_missing_or_ambiguous_unit_is_asked_for(text: str, asks: str) -> None:
    with pytest.raises(LimitError, match=re.escape(asks)) as error:
        Limits.parse([text])
    assert repr(text) in str(error.value)


def test_53_a_limit_that_the_original_already_meets_is_said() -> None:
    limits = Limits.parse(["latency <= 5 ms", "latency <= 0.5x", "accuracy drop <= 1 point", "energy <= 20 mJ"])
    assert limits.already_met_by(ORIGINAL.measurements) == [
        "latency <= 5 ms is already met by the original (2 ms)",
        "energy <= 20 mJ is already met by the original (12 mJ)",
    ]


def test_54_an_estimated_energy_never_meets_a_limit_in_silence() -> None:
    limits = Limits.parse(["energy <= 20 mJ"])
    (note,) = limits.check(FAST.measurements, ORIGINAL.measurements)
    assert (note.kind, note.broken) == ("estimated", False)
    assert str(note) == "energy <= 20 mJ: 12 mJ (estimated, not measured)"
    assert limits.met(FAST.measurements, ORIGINAL.measurements)


def test_54_an_energy_that_was_not_measured_is_no_zero() -> None:
    without = {k: v for k, v in FAST.measurements.items() if k != "energy_mj"}
    (violation,) = Limits.parse(["energy <= 20 mJ"]).check(without, ORIGINAL.measurements)
    assert (violation.kind, violation.broken, violation.value) == ("missing", True, None)
    row = Front.of([ORIGINAL, FAST]).to_rows()[1]
    assert row["energy_status"] == "estimated"
