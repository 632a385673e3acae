"""Reading limits, and judging measurements by them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretoprune.core.candidate import Candidate
from paretoprune.core.errors import LimitError, UsageError
from paretoprune.core.limit_grammar import Limit
from paretoprune.core.limit_metrics import METRICS
from paretoprune.core.limits import Limits
from paretoprune.core.measurement import Measurement
from paretoprune.core.plan import Plan

ORIGINAL = {
    "accuracy": Measurement.exact(0.90, "share"),
    "validation": Measurement.exact(0.80, "share"),
    "latency_ms": Measurement(4.0, 3.9, 4.1, 50, "ms"),
    "size_bytes": Measurement.exact(2_000_000, "B"),
    "energy_mj": Measurement(50.0, 40.0, 60.0, 1, "mJ", "estimated"),
}


def measured(**values: float) -> dict[str, Measurement]:
    return {key: Measurement(value, value * 0.99, value * 1.01, 50, "") for key, value in values.items()}


def candidate(name: str, **values: float) -> Candidate:
    return Candidate(name, Plan(), "fp32", Path(name), measured(**values))


class TestGrammar:
    @pytest.mark.parametrize(
        ("text", "bound", "relative"),
        [
            ("accuracy drop <= 1 point", 0.01, False),
            ("accuracy drop <= 1.5 percentage points", 0.015, False),
            ("accuracy drop <= 1 % of original", 0.01, True),
            ("accuracy_drop at most 2 percent of the original", 0.02, True),
            ("accuracy >= 0.9", 0.9, False),
            ("accuracy >= 90 %", 0.9, False),
            ("Accuracy at  least 90%", 0.9, False),
            ("accuracy >= 0.99x", 0.99, True),
            ("latency <= 5 ms", 5.0, False),
            ("latency<5e-3s", 5.0, False),
            ("latency ≤ 500 µs", 0.5, False),
            ("latency <= 0.5x", 0.5, True),
            ("latency <= 0.5×", 0.5, True),
            ("latency <= 50 % of original", 0.5, True),
            ("speedup >= 2x", 2.0, False),
            ("size <= 1 MB", 1e6, False),
            ("size <= 1 kB", 1e3, False),
            ("size <= 1 KiB", 1024, False),
            ("size <= 1 MiB", 2**20, False),
            ("memory <= .5 GB", 5e8, False),
            ("energy <= 20 mJ", 20.0, False),
            ("energy <= 2 J", 2000.0, False),
            ("energy <= 20 uJ", 0.02, False),
            ("power <= 500 mW", 0.5, False),
            ("frame rate >= 30 fps", 30.0, False),
            ("frame rate >= 2x", 2.0, True),
            ("macs <= 20 M", 2e7, False),
            ("macs <= 0.5x", 0.5, True),
            ("parameters <= 1 M", 1e6, False),
            ("f1 >= 90 %", 0.9, False),
            ("F1 score >= 0.9", 0.9, False),
            ("f1 drop <= 1 point", 0.01, False),
            ("precision >= 0.99x", 0.99, True),
            ("recall_drop <= 2 % of original", 0.02, True),
            ("loss <= 1.2x", 1.2, True),
            ("loss <= 0.3 nats", 0.3, False),
            ("recovery ratio >= 90 %", 0.9, False),
            ("recovery ratio >= 0.9x", 0.9, False),
            ("calibration error <= 5 %", 0.05, False),
            ("calibration error <= 0.5 points", 0.005, False),
            ("ECE <= 1.5x", 1.5, True),
            ("generalization gap <= 5 points", 0.05, False),
            ("robust accuracy (fgsm) >= 60 %", 0.6, False),
            ("robust accuracy(PGD) >= 0.6", 0.6, False),
            ("robust accuracy drop ( noise ) <= 3 points", 0.03, False),
        ],
    )
    def test_what_is_written_is_what_is_meant(self, text: str, bound: float, relative: bool) -> None:
        limit = Limit.parse(text)
        assert limit.bound == pytest.approx(bound, rel=1e-12)
        assert limit.relative is relative
        assert Limit.parse(str(limit)) == limit
        assert Limits.parse([text]).limits == (limit,)

    @given(st.data())
    def test_every_limit_survives_being_written_and_read(self, data: st.DataObject) -> None:
        metric = data.draw(st.sampled_from(sorted(METRICS)))
        about = METRICS[metric]
        unit = data.draw(st.sampled_from([*about.units, *about.relative]))
        top = 1.0 if about.top is None or unit in about.relative else about.top / about.units[unit]
        low = 1.01 if about.share and unit == "%" else 1e-6
        number = data.draw(st.floats(low, top * 0.999 if about.top else 1e12, exclude_min=True))
        limit = Limit(metric, ">=" if about.better == "high" else "<=", number, unit)
        assert Limit.parse(str(limit)) == limit

    @given(st.text(max_size=30))
    def test_any_text_is_read_or_refused_with_one_line(self, text: str) -> None:
        said = ""
        try:
            Limit.parse(text)
        except LimitError as error:
            said = str(error)
        assert said.isprintable()

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("latency", "no comparison"),
            ("latency = 5 ms", "no comparison"),
            ("<= 5 ms", "names no metric"),
            ("latncy <= 5 ms", "did you mean 'latency'"),
            ("flops <= 5 M", "known metrics: accuracy, accuracy drop, latency, speedup, size"),
            ("latency <= fast", "expected a number"),
            ("latency <= 5 MB", "latency is not given in 'MB'; units: ms, s, us, x"),
            ("size <= 5 mb", "did you mean 'MB'"),
            ("energy <= 5 mj", "did you mean 'mJ'"),
            ("speedup >= 2 ms", "units: x"),
            ("accuracy drop <= 101 points", "cannot exceed 100 point"),
            ("accuracy >= 101 %", "cannot exceed 100 %"),
            ("accuracy drop <= 0.01x", "units: point, % of original"),
            ("f1 >= 90", "is f1 90 a percentage or a share? write '90 %' or '0.9'"),
            ("f1 >= 0.9 %", "write '0.9' for the share or '90 %'"),
            ("f1s >= 90 %", "did you mean 'f1'"),
            ("loss <= 0.3", "0.3 what? add a unit, one of nat, x, % of original"),
            ("calibration error <= 5", "5 what? add a unit, one of %, point"),
            ("generalisation gap <= 5 %", "5 % of what? write '5 point'"),
            ("robust accuracy (fgms) >= 60 %", "did you mean 'robust accuracy (fgsm)'"),
            ("robust accuracy >= 60 %", "unknown metric 'robust accuracy'"),
        ],
    )
    def test_what_cannot_be_read_says_what_to_write(self, text: str, says: str) -> None:
        with pytest.raises(LimitError, match=re.escape(says)) as error:
            Limits.parse([text])
        assert repr(text) in str(error.value)

    @pytest.mark.parametrize(
        ("text", "turned"),
        [
            ("latency >= 5 ms", "latency <= 5 ms"),
            ("accuracy <= 90 %", "accuracy >= 90 %"),
            ("accuracy drop >= 1 point", "accuracy drop <= 1 point"),
            ("speedup < 2x", "speedup >= 2x"),
            ("f1 drop >= 1 point", "f1 drop <= 1 point"),
            ("calibration error >= 5 %", "calibration error <= 5 %"),
        ],
    )
    def test_a_limit_that_asks_for_worse_is_odd(self, text: str, turned: str) -> None:
        with pytest.raises(LimitError, match=re.escape(f"did you mean {turned!r}")):
            Limits.parse([text])

    def test_limits_are_a_list_of_texts(self) -> None:
        with pytest.raises(LimitError, match="must be a list"):
            Limits.parse("latency <= 5 ms")
        with pytest.raises(LimitError, match="limit 5 holds no comparison"):
            Limits.parse([5])  # type: ignore[list-item]

    def test_the_same_limit_twice_is_one(self) -> None:
        assert len(Limits.parse(["latency <= 5 ms", "latency <=  5ms"])) == 1
        assert len(Limits.parse(["latency <= 5 ms", "latency <= 0.005 s"])) == 2

    def test_two_bounds_from_one_side_are_no_contradiction_but_one_too_many(self) -> None:
        with pytest.raises(LimitError, match="limit latency twice; keep one"):
            Limits.parse(["latency <= 5 ms", "latency <= 10 ms"])

    def test_an_absolute_and_a_relative_limit_may_stand_together(self) -> None:
        assert str(Limits.parse(["latency <= 5 ms", "latency <= 0.5x"])) == "latency <= 5 ms, latency <= 0.5x"

    def test_no_limits_are_false_and_always_met(self) -> None:
        assert not Limits.parse([])
        assert Limits().met({}, {})


class TestCheck:
    def broken(self, text: str, **values: float) -> list[str]:
        return [str(v) for v in Limits.parse([text]).check(measured(**values), ORIGINAL) if v.broken]

    def test_absolute(self) -> None:
        assert self.broken("latency <= 5 ms", latency_ms=5.0) == []
        assert self.broken("latency < 5 ms", latency_ms=5.0) == ["latency < 5 ms: 5 ms"]
        assert self.broken("size <= 1 MB", size_bytes=1_234_567) == ["size <= 1 MB: 1.23 MB"]

    def test_a_drop_is_in_points_or_in_percent_of_the_original(self) -> None:
        assert self.broken("accuracy drop <= 1 point", validation=0.79) == []
        assert self.broken("accuracy drop <= 1 point", validation=0.789) == ["accuracy drop <= 1 point: 1.1 points"]
        assert self.broken("accuracy drop <= 1 % of original", validation=0.792) == []
        assert self.broken("accuracy drop <= 1 % of original", validation=0.79) != []

    @given(st.integers(1, 999), st.integers(0, 999))
    def test_a_drop_of_exactly_the_limit_is_met_whatever_the_rounding(self, tenths: int, end: int) -> None:
        """Shares are correct / total: 0.90 - 0.89 is not 0.01 in binary."""
        limits = Limits.parse([f"accuracy drop <= {tenths / 10} points"])
        start = {"accuracy": Measurement.exact((end + tenths) / 1000, "share")}
        assert limits.met({"accuracy": Measurement.exact(end / 1000, "share")}, start)
        assert not limits.met({"accuracy": Measurement.exact((end - 0.01) / 1000, "share")}, start)

    def test_accuracy_is_the_validation_share_unless_asked_otherwise(self) -> None:
        limits = Limits.parse(["accuracy >= 85 %"])
        values = measured(accuracy=0.9, validation=0.8)
        assert not limits.met(values, ORIGINAL)
        assert limits.met(values, ORIGINAL, judge="accuracy")
        assert limits.met(measured(accuracy=0.9), ORIGINAL)
        with pytest.raises(UsageError, match="judge='test'"):
            limits.met(values, ORIGINAL, judge="test")

    def test_a_candidate_without_validation_is_compared_on_the_test_share_of_both(self) -> None:
        assert Limits.parse(["accuracy drop <= 1 point"]).met(measured(accuracy=0.895), ORIGINAL)
        assert not Limits.parse(["accuracy drop <= 1 point"]).met(measured(accuracy=0.80), ORIGINAL)
        untried = {"accuracy": ORIGINAL["accuracy"]}
        assert Limits.parse(["accuracy drop <= 1 point"]).met(measured(accuracy=0.895, validation=0.7), untried)

    def test_every_figure_of_the_answers_is_judged_on_the_validation_set(self) -> None:
        original = {"macro_f1": Measurement.exact(0.9, "share"), "validation_macro_f1": Measurement.exact(0.8, "share")}
        limits = Limits.parse(["f1 drop <= 1 point"])
        assert limits.met(measured(macro_f1=0.5, validation_macro_f1=0.795), original)
        assert not limits.met(measured(macro_f1=0.9, validation_macro_f1=0.78), original)
        assert not limits.met(measured(macro_f1=0.5, validation_macro_f1=0.795), original, judge="accuracy")
        assert not limits.met(measured(accuracy=1.0, validation=1.0), original)

    def test_a_figure_of_the_answers_is_not_said_to_be_met_already(self) -> None:
        original = {"calibration_error": Measurement.exact(0.01, "share"), "size_bytes": Measurement.exact(10, "B")}
        said = Limits.parse(["calibration error <= 5 %", "size <= 1 MB"]).already_met_by(original)
        assert said == ["size <= 1 MB is already met by the original (1e-05 MB)"]

    def test_relative_latency_takes_the_paired_measurement_first(self) -> None:
        assert self.broken("latency <= 0.5x", latency_ms=1.9) == []
        assert self.broken("latency <= 0.5x", latency_ms=1.9, speedup=1.8) == ["latency <= 0.5x: 0.556x"]
        assert self.broken("speedup >= 2x", latency_ms=1.9) == []
        assert self.broken("speedup >= 2x", latency_ms=1.9, speedup=1.8) == ["speedup >= 2x: 1.8x"]

    def test_relative_size(self) -> None:
        assert self.broken("size <= 0.5x", size_bytes=1_000_000) == []
        assert self.broken("size <= 50 % of original", size_bytes=1_100_000) == [
            "size <= 50 % of original: 55 % of original"
        ]

    def test_what_was_not_measured_is_not_met(self) -> None:
        assert self.broken("energy <= 20 mJ", latency_ms=1.0) == ["energy <= 20 mJ: energy was not measured"]
        assert self.broken("macs <= 0.5x", macs=5) == ["macs <= 0.5x: macs was not measured"]

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_figure_that_is_no_number_is_not_met(self, value: float) -> None:
        assert self.broken("latency <= 5 ms", latency_ms=value)

    @pytest.mark.parametrize("metric", ["latency_ms", "size_bytes", "speedup"])
    def test_figures_of_zero_do_not_divide(self, metric: str) -> None:
        limits = Limits.parse(["latency <= 0.5x", "size <= 0.5x", "speedup >= 2x"])
        zero = {metric: Measurement.exact(0.0, "")}
        assert not limits.met(zero, zero)


class TestUnreachable:
    limits = Limits.parse(["latency <= 0.01 ms"])
    fast = candidate("fast", latency_ms=0.42, accuracy=0.5, validation=0.5)
    slow = candidate("slow", latency_ms=2.0, accuracy=0.9, validation=0.8)

    def test_the_value_proposed_is_one_that_is_met(self) -> None:
        for value in (0.4231, 0.42, 1 / 3, 7.0, 123.456):
            only = candidate("a", latency_ms=value)
            for op in ("<=", "<"):
                message = Limits.parse([f"latency {op} 0.01 ms"]).unreachable([only], ORIGINAL)
                assert message is not None
                proposed = re.search(r"to at least (.*)$", message)
                assert proposed is not None
                assert Limits.parse([f"latency {op} {proposed[1]}"]).met(only.measurements, ORIGINAL)

    @given(st.floats(1e-3, 0.9), st.sampled_from([">", ">="]))
    def test_so_is_one_from_below(self, share: float, op: str) -> None:
        only = candidate("a", accuracy=share, validation=share)
        message = Limits.parse([f"accuracy {op} 99 %"]).unreachable([only], ORIGINAL)
        assert message is not None
        proposed = re.search(r"to at most (.*) %$", message)
        assert proposed is not None
        assert share * 100 * 0.97 < float(proposed[1]) <= share * 100 * (1 + 1e-9)

    def test_none_where_one_candidate_meets_all(self) -> None:
        assert Limits.parse(["latency <= 1 ms"]).unreachable([self.slow, self.fast], ORIGINAL) is None

    def test_limits_that_only_fail_together_name_the_nearest(self) -> None:
        both = Limits.parse(["latency <= 1 ms", "accuracy >= 70 %"])
        assert both.unreachable([self.slow, self.fast], ORIGINAL) == (
            "latency <= 1 ms, accuracy >= 70 % cannot be met together; nearest is fast: "
            "accuracy >= 70 % fails (50 %); lower the limit to at most 50 %"
        )

    def test_what_no_candidate_measured(self) -> None:
        message = Limits.parse(["energy <= 1 mJ"]).unreachable([self.slow], ORIGINAL)
        assert message == "energy <= 1 mJ cannot be judged: energy was not measured for any candidate; drop the limit"

    def test_no_candidates_at_all(self) -> None:
        assert self.limits.unreachable([], ORIGINAL) == (
            "no candidate was measured, so nothing can meet latency <= 0.01 ms"
        )
        assert Limits().unreachable([], ORIGINAL) is None
