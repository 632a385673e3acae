"""Who is on the front, and what is picked from it."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretoprune.core.candidate import Candidate
from paretoprune.core.errors import UnreachableLimitError, UsageError
from paretoprune.core.front import Front, dominates, metric_key
from paretoprune.core.limits import Limits
from paretoprune.core.measurement import Measurement
from paretoprune.core.plan import Plan

BASE_MS = 4.0


def candidate(
    name: str,
    accuracy: float,
    latency_ms: float,
    *,
    noise: float = 0.0,
    original: bool = False,
    **more: float | Measurement,
) -> Candidate:
    """One whose intervals are `noise` (relative) to either side; the accuracy's is exact."""
    speedup = BASE_MS / latency_ms
    values: dict[str, float | Measurement] = {
        "accuracy": accuracy,
        "latency_ms": Measurement(latency_ms, latency_ms * (1 - noise), latency_ms * (1 + noise), 50, "ms"),
        "speedup": Measurement(speedup, speedup * (1 - noise), speedup * (1 + noise), 50, "x"),
        **more,
    }
    taken = {k: v if isinstance(v, Measurement) else Measurement.exact(v, "") for k, v in values.items()}
    return Candidate(name, Plan(), "fp32", Path(name), taken, original=original)


ORIGINAL = candidate("original", 0.90, BASE_MS, original=True)
MIDDLE = candidate("middle", 0.89, 1.5)
FAST = candidate("fast", 0.80, 1.0)


def names(candidates: tuple[Candidate, ...]) -> list[str]:
    return [c.name for c in candidates]


def test_two_takes_join_to_the_steadier_value_and_an_interval_around_both() -> None:
    noisy = Measurement(1.3, 1.0, 1.6, 40, "ms")
    calm = Measurement(1.0, 0.99, 1.01, 60, "ms")
    joined = noisy.joined(calm)
    assert (joined.value, joined.low, joined.high, joined.runs) == (1.0, 0.99, 1.3, 100)
    assert calm.joined(noisy) == joined


class TestDominates:
    def test_latencies_are_compared_by_the_paired_speedup(self) -> None:
        """The machine slowed down between the two: absolute figures mislead, pairs do not."""
        early = candidate("early", 0.9, 1.0, speedup=Measurement(4.0, 3.9, 4.1, 50, "x"))
        late = candidate("late", 0.9, 1.2, speedup=Measurement(5.0, 4.9, 5.1, 50, "x"))
        assert dominates(late, early)
        assert not dominates(early, late)

    def test_better_in_one_and_equal_in_the_other(self) -> None:
        assert dominates(candidate("a", 0.9, 1.0), candidate("b", 0.9, 2.0))
        assert not dominates(candidate("b", 0.9, 2.0), candidate("a", 0.9, 1.0))

    def test_a_trade_is_no_domination(self) -> None:
        assert not dominates(ORIGINAL, FAST)
        assert not dominates(FAST, ORIGINAL)

    def test_two_identical_models_tie_within_the_noise(self) -> None:
        a, b = candidate("a", 0.9, 1.00, noise=0.03), candidate("b", 0.9, 1.02, noise=0.03)
        assert not dominates(a, b)
        assert dominates(dataclasses.replace(candidate("a", 0.9, 1.00, noise=0.005)), candidate("b", 0.9, 1.02))

    def test_a_better_share_counts_only_beyond_its_noise(self) -> None:
        def share(value: float, noise: float) -> Candidate:
            taken = Measurement(value, value - noise, value + noise, 500, "share")
            return candidate(str(value), 0.9, 1.0, validation=taken)

        objectives = ("validation", "latency")
        assert not dominates(share(0.90, 0.02), share(0.88, 0.02), objectives)
        assert dominates(share(0.90, 0.005), share(0.88, 0.005), objectives)

    def test_intervals_that_touch_are_not_disjoint(self) -> None:
        a = candidate("a", 0.9, 1.0, size_bytes=Measurement(1.0, 0.9, 1.1, 9, ""))
        b = candidate("b", 0.9, 1.2, size_bytes=Measurement(1.2, 1.1, 1.3, 9, ""))
        assert not dominates(a, b, ("accuracy", "size"))
        assert dominates(a, b, ("latency", "size"))

    def test_a_worse_value_within_the_noise_still_protects(self) -> None:
        """Point values must be at least as good everywhere, however wide the interval is."""
        wide = candidate("a", 0.9, 1.0, validation=Measurement(0.899, 0.8, 0.95, 100, "share"))
        assert not dominates(wide, candidate("b", 0.9, 2.0, validation=0.9), ("validation", "latency"))

    def test_an_estimate_is_no_objective(self) -> None:
        guess = Measurement(1.0, 0.5, 1.5, 1, "mJ", "estimated")
        with pytest.raises(UsageError, match="energy_mj was only estimated"):
            dominates(candidate("a", 0.9, 1.0, energy_mj=guess), MIDDLE, ("accuracy", "energy"))
        with pytest.raises(UsageError, match="energy_mj was not measured"):
            dominates(MIDDLE, MIDDLE, ("accuracy", "energy"))

    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5), st.integers(0, 3)), min_size=2, max_size=6))
    def test_domination_never_goes_in_a_circle(self, points: list[tuple[int, int, int]]) -> None:
        made = [candidate(str(i), a / 10, float(ms), noise=n / 10) for i, (a, ms, n) in enumerate(points)]
        edges = {(a.name, b.name) for a, b in itertools.permutations(made, 2) if dominates(a, b)}
        left = {c.name for c in made}
        while left:
            free = {n for n in left if not any((m, n) in edges for m in left)}
            assert free
            left -= free


class TestOf:
    def test_members_are_not_dominated_and_cheapest_first(self) -> None:
        beaten = candidate("beaten", 0.79, 1.6)
        front = Front.of([ORIGINAL, beaten, FAST, MIDDLE])
        assert names(front.members) == ["fast", "middle", "original"]
        assert names(front.candidates) == ["original", "beaten", "fast", "middle"]
        assert [c.on_front for c in front.candidates] == [True, False, True, True]

    def test_a_member_slower_than_the_original_is_never_on_the_front(self) -> None:
        slower = candidate("slower", 0.95, 4.4)
        unsure = candidate("unsure", 0.95, 3.9, noise=0.05)
        equal = candidate("equal", 0.95, 4.0)  # beats the original in accuracy, yet may not push it off
        assert names(Front.of([ORIGINAL, slower, unsure, equal]).members) == ["original"]

    def test_without_a_measured_speedup_nobody_is_called_faster(self) -> None:
        unknown = dataclasses.replace(
            MIDDLE, measurements={k: v for k, v in MIDDLE.measurements.items() if k != "speedup"}
        )
        guessed = candidate("guessed", 0.89, 1.5, speedup=Measurement(3.0, 2.9, 3.1, 1, "x", "estimated"))
        assert names(Front.of([ORIGINAL, unknown, guessed]).members) == ["original"]

    def test_the_original_leaves_when_it_is_beaten_but_stays_listed(self) -> None:
        front = Front.of([ORIGINAL, candidate("better", 0.91, 2.0)])
        assert names(front.members) == ["better"]
        assert front.original.name == "original"
        assert not front.original.on_front

    def test_a_candidate_without_an_objective_is_listed_but_not_on_the_front(self) -> None:
        bare = Candidate("bare", Plan(), "int8", Path("bare"), {"accuracy": Measurement.exact(0.99, "")})
        front = Front.of([ORIGINAL, bare, MIDDLE])
        assert names(front.members) == ["middle", "original"]
        assert len(front.candidates) == 3

    def test_limits_mark_but_do_not_remove(self) -> None:
        front = Front.of([ORIGINAL, MIDDLE, FAST], Limits.parse(["accuracy drop <= 2 points", "latency <= 2 ms"]))
        assert {c.name: c.meets_limits for c in front.members} == {"fast": False, "middle": True, "original": False}

    def test_exactly_one_original(self) -> None:
        with pytest.raises(UsageError, match=r"exactly one original.*none"):
            Front.of([MIDDLE])
        with pytest.raises(UsageError, match=r"exactly one original.*original, again"):
            Front.of([ORIGINAL, candidate("again", 0.9, 4.0, original=True)])

    @pytest.mark.parametrize(
        ("objectives", "says"),
        [
            (("accuracy", "flops"), "unknown metric 'flops'"),
            (("accuracy", "energy"), "energy_mj was not measured"),
            ((), "at least one"),
            (("latency", "latency_ms"), "different metrics"),
        ],
    )
    def test_objectives_that_cannot_be_compared(self, objectives: tuple[str, ...], says: str) -> None:
        with pytest.raises(UsageError, match=says):
            Front.of([ORIGINAL, MIDDLE], objectives=objectives)

    @given(
        st.lists(
            st.tuples(st.integers(0, 20), st.floats(0.5, 8), st.sampled_from([0.0, 0.02, 0.1])), min_size=1, max_size=12
        )
    )
    def test_the_promise(self, points: list[tuple[int, float, float]]) -> None:
        made = [candidate(f"c{i}", a / 20, ms, noise=n) for i, (a, ms, n) in enumerate(points)]
        front = Front.of([ORIGINAL, *made])
        assert front.members
        assert sum(c.original for c in front.candidates) == 1
        for member in front.members:
            assert member.original or member.measurements["speedup"].low > 1
        faster = [c for c in front.candidates if c.original or c.measurements["speedup"].low > 1]
        for c in faster:
            assert c.on_front == (not any(dominates(d, c) for d in faster))


class TestPicks:
    def test_best_by_each_name_of_a_metric(self) -> None:
        front = Front.of([ORIGINAL, MIDDLE, FAST])
        assert front.best("latency").name == front.best("latency_ms").name == "fast"
        assert front.best("speedup").name == "fast"
        assert front.best("accuracy").name == "original"

    def test_best_keeps_to_the_limits(self) -> None:
        assert (
            Front.of([ORIGINAL, MIDDLE, FAST], Limits.parse(["accuracy drop <= 1 point"])).best("latency") is not None
        )
        front = Front.of([ORIGINAL, MIDDLE, FAST], Limits.parse(["accuracy drop <= 1 point"]))
        assert front.best("latency").name == "middle"

    def test_best_of_equals_is_the_more_accurate(self) -> None:
        a = candidate("a", 0.70, 1.0, size_bytes=10.0)
        b = candidate("b", 0.89, 1.5, size_bytes=10.0)
        assert Front.of([ORIGINAL, a, b]).best("size").name == "b"

    def test_best_of_what_nobody_measured(self) -> None:
        with pytest.raises(
            UsageError, match="no member of the front has energy measured; there is accuracy, latency_ms"
        ):
            Front.of([ORIGINAL, MIDDLE]).best("energy")
        with pytest.raises(UsageError, match="unknown metric 'watts'; write one of latency, energy, size"):
            Front.of([ORIGINAL, MIDDLE]).best("watts")

    def test_a_measured_energy_goes_before_an_estimated_one(self) -> None:
        guess = candidate("guess", 0.89, 1.5, energy_mj=Measurement(1.0, 0.5, 2.0, 1, "mJ", "estimated"))
        real = candidate("real", 0.80, 1.0, energy_mj=5.0)
        assert Front.of([ORIGINAL, guess, real]).best("energy").name == "real"
        assert Front.of([ORIGINAL, guess]).best("energy").name == "guess"

    def test_picks_judge_accuracy_on_validation_if_all_have_it(self) -> None:
        original = candidate("original", 0.90, 4.0, original=True, validation=0.80)
        a = candidate("a", 0.89, 1.0, validation=0.70)
        b = candidate("b", 0.892, 1.5, validation=0.795)
        limits = Limits.parse(["accuracy drop <= 2 points"])
        assert Front.of([original, a, b], limits).best("latency").name == "b"
        assert Front.of([original, a, b], limits, judge="accuracy").best("latency").name == "a"
        assert Front.of([original, a, b, MIDDLE], limits).judge == "accuracy"
        with pytest.raises(UsageError, match="judge='test'"):
            Front.of([original], judge="test")

    def test_limits_that_no_member_meets_name_the_nearest(self) -> None:
        front = Front.of([ORIGINAL, MIDDLE, FAST], Limits.parse(["latency <= 0.5 ms"]))
        for pick in (front.knee, lambda: front.best("accuracy")):
            with pytest.raises(
                UnreachableLimitError, match="fastest candidate takes 1 ms; raise the limit to at least 1 ms"
            ):
                pick()


class TestKnee:
    def test_the_bend(self) -> None:
        assert Front.of([ORIGINAL, MIDDLE, FAST]).knee().name == "middle"

    def test_units_do_not_matter(self) -> None:
        def scaled(c: Candidate) -> Candidate:
            ms = c.measurements["latency_ms"]
            return dataclasses.replace(
                c,
                measurements={
                    **c.measurements,
                    "latency_ms": Measurement(*(1e4 * v for v in (ms.value, ms.low, ms.high)), 1, ""),
                },
            )

        assert Front.of([scaled(c) for c in (ORIGINAL, MIDDLE, FAST)]).knee().name == "middle"

    def test_one_member_is_the_knee(self) -> None:
        assert Front.of([ORIGINAL]).knee().name == "original"

    def test_of_two_members_the_cheaper(self) -> None:
        assert Front.of([ORIGINAL, FAST]).knee().name == "fast"

    def test_on_a_concave_front_the_cheapest_end(self) -> None:
        bulge = candidate("bulge", 0.81, 3.8)
        assert Front.of([ORIGINAL, bulge, FAST]).knee().name == "fast"

    def test_only_members_that_meet_the_limits_make_the_chord(self) -> None:
        front = Front.of([ORIGINAL, MIDDLE, FAST], Limits.parse(["accuracy >= 85 %"]))
        assert front.knee().name == "middle"

    def test_three_objectives(self) -> None:
        sizes = {"original": 9.0, "middle": 2.0, "fast": 1.0}
        made = [
            dataclasses.replace(c, measurements={**c.measurements, "size_bytes": Measurement.exact(sizes[c.name], "B")})
            for c in (ORIGINAL, MIDDLE, FAST)
        ]
        assert Front.of(made, objectives=("accuracy", "latency", "size")).knee().name == "middle"


class TestHypervolume:
    front = Front.of([ORIGINAL, MIDDLE, FAST])

    def test_by_hand(self) -> None:
        # Against accuracy 0.5 and 5 ms: 0.3 x 4 (fast) + 0.09 x 3.5 (middle) + 0.01 x 1 (original)
        assert self.front.hypervolume({"accuracy": 0.5, "latency": 5.0}) == pytest.approx(1.2 + 0.315 + 0.01)

    def test_the_default_reference_is_the_worst_of_the_candidates(self) -> None:
        assert self.front.hypervolume() == pytest.approx(0.09 * 2.5)
        with_worse = Front.of([ORIGINAL, MIDDLE, FAST, candidate("worst", 0.5, 5.0)])
        assert with_worse.hypervolume() == pytest.approx(self.front.hypervolume({"accuracy": 0.5, "latency_ms": 5.0}))

    def test_members_outside_the_reference_add_nothing(self) -> None:
        assert self.front.hypervolume({"accuracy": 0.89, "latency": 1.0}) == 0

    @pytest.mark.parametrize(
        ("reference", "says"),
        [
            ({"accuracy": 0.5}, "one value for each objective: accuracy, latency_ms"),
            ({"accuracy": 0.5, "latency": 1, "size": 3}, "one value for each objective"),
            ({}, "names nothing"),
            ({"accuracy": 0.5, "latency": math.nan}, "reference of latency_ms is nan"),
        ],
    )
    def test_a_reference_that_does_not_fit(self, reference: dict[str, float], says: str) -> None:
        with pytest.raises(UsageError, match=says):
            self.front.hypervolume(reference)


class TestRows:
    def test_rows_are_json_and_none_is_not_zero(self) -> None:
        guess = Measurement(2.0, 1.0, math.inf, 1, "mJ", "estimated")
        rows = Front.of([ORIGINAL, candidate("a", 0.8, 1.0, energy_mj=guess, size_bytes=1234.0)]).to_rows()
        assert json.loads(json.dumps(rows, allow_nan=False)) == rows
        original, a = rows
        assert (original["original"], a["original"]) == (True, False)
        assert original["energy_mj"] is original["energy_status"] is original["size_bytes"] is None
        assert (a["energy_mj"], a["energy_status"], a["intervals"]["energy_mj"]) == (2.0, "estimated", [1.0, None])
        assert a["size_bytes"] == 1234
        assert type(a["size_bytes"]) is int
        assert Path(a["path"]).is_absolute()
        assert a["on_front"] is True
        assert set(a) >= {
            "name",
            "meets_limits",
            "precision",
            "accuracy",
            "latency_ms",
            "macs",
            "speedup",
            "validation",
        }

    def test_csv_runs_no_formula_and_keeps_negative_numbers(self) -> None:
        evil = candidate("=HYPERLINK(1)", 0.8, 1.0)
        spaced = dataclasses.replace(candidate(" @SUM(1)", 0.7, 0.9), precision="-1+1")
        table = list(csv.DictReader(io.StringIO(Front.of([ORIGINAL, evil, spaced]).to_csv())))
        assert [line["name"] for line in table] == ["original", "'=HYPERLINK(1)", "' @SUM(1)"]
        assert table[2]["precision"] == "'-1+1"
        assert (table[1]["latency_ms"], table[1]["latency_ms_low"], table[1]["macs"]) == ("1.0", "1.0", "")

    def test_a_frame_has_one_line_for_each_candidate(self) -> None:
        frame = Front.of([ORIGINAL, MIDDLE, FAST]).to_frame()
        assert list(frame["name"]) == ["original", "middle", "fast"]
        assert frame["latency_ms"].sum() == pytest.approx(6.5)

    def test_without_pandas_the_remedy_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(UsageError, match="pip install pandas"):
            Front.of([ORIGINAL]).to_frame()

    def test_metric_names(self) -> None:
        assert [metric_key(n) for n in ("latency", "size", "energy", "memory", "macs")] == [
            "latency_ms",
            "size_bytes",
            "energy_mj",
            "memory_bytes",
            "macs",
        ]


def test_importing_the_front_does_not_import_torch_or_pandas() -> None:
    import os
    import subprocess

    import paretoprune.core.front as module

    root = str(Path(str(module.__file__)).parents[2])
    code = "import sys, paretoprune.core.front; print({'torch', 'pandas', 'optuna'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert done.stdout.strip() == "set()"
