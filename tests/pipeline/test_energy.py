"""A meter in a search and in `pp.measure`: its figures are measured, and named after it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor, nn

import paretoprune as pp
import paretoprune.targets.meters as meters
from paretoprune.core.errors import LimitError, MeterError, StoreError, UsageError
from paretoprune.core.measurement import Measurement
from paretoprune.pipeline.reporting import notes
from paretoprune.pipeline.results import _figures


class Board:
    """2 W, and 10 W more for each core that this process keeps busy."""

    name = "board"
    period_s = 0.002

    def joules(self) -> float:
        return 2.0 * time.perf_counter() + 10.0 * time.process_time()


class Other(Board):
    name = "another"


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "WINDOW_S", 0.02)


def test_a_search_with_a_meter(searching: Callable[..., pp.Front], tmp_path: Path) -> None:
    front = searching(meter=Board, objectives=["accuracy", "energy"], limits=["frame rate >= 10 fps"])
    for candidate in front.candidates:
        energy = candidate.measurements["energy_mj"]
        assert (energy.status, energy.low > 0) == ("measured", True)
        assert "read from board" in energy.note
        assert candidate.measurements["energy_gross_mj"].value > energy.value
        assert candidate.measurements["energy_per_correct_mj"].value >= energy.value
        assert candidate.measurements["idle_w"].value == pytest.approx(2.0, rel=0.5)
        assert candidate.measurements["energy_analytic_mj"].status == "estimated"
    row = front.to_rows()[0]
    assert row["estimated"] == ["energy_analytic_mj"]
    assert row["fps"] > 0
    json.dumps(row)
    with pytest.raises(StoreError, match="meter"):
        searching(meter=Other, objectives=["accuracy", "energy"], limits=["frame rate >= 10 fps"])


def test_a_run_says_where_its_meter_failed() -> None:
    def candidate(name: str, status: Any) -> pp.Candidate:
        taken = {
            "accuracy": Measurement(0.9, 0.8, 1.0, 9, "share"),
            "latency_ms": Measurement(1.0, 1.0, 1.0, 9, "ms"),
            "energy_mj": Measurement(1.0, 0.9, 1.1, 9, "mJ", status),
        }
        return pp.Candidate(name, pp.Plan(), "fp32", Path(name), taken, original=name == "original")

    front = pp.Front.of([candidate("original", "measured"), candidate("other", "estimated")])
    view: Any = SimpleNamespace(
        identity={"meter": "board"}, done=lambda *_: None, all=lambda _: {}, quarantined=0, path=Path("run")
    )
    (note,) = notes(view, front)
    assert note.startswith("meter 'board' gave no energy for 1 of 2 files: an estimate stands in")
    view.identity = {}
    assert notes(view, front) == ()


@pytest.mark.usefixtures("quick")
def test_measure_with_a_meter(net: nn.Module, example: Tensor) -> None:
    found = pp.measure(net, example, meter=Board())
    assert {found[key].status for key in ("energy_mj", "energy_gross_mj", "idle_w", "power_w")} == {"measured"}
    assert found["power_w"].value == pytest.approx(found["energy_mj"].value / found["wall_ms"].value)
    with pytest.raises(UsageError, match="is not a meter"):
        pp.measure(net, example, meter=object())


def test_a_meter_that_is_dead_from_the_start_is_refused_before_any_work(
    searching: Callable[..., pp.Front], tmp_path: Path
) -> None:
    class Dead(Board):
        def joules(self) -> float:
            raise OSError("unplugged")

    with pytest.raises(MeterError, match="meter 'board' failed with OSError: unplugged"):
        searching(meter=Dead)
    assert not (tmp_path / "run").exists()


def test_power_is_no_bound_that_the_smallest_network_sets() -> None:
    from paretoprune.core.limit_metrics import METRICS

    assert not METRICS["power"].bounded
    assert METRICS["frame rate"].bounded
    assert METRICS["latency"].bounded
    assert not METRICS["accuracy"].bounded
    with pytest.raises(LimitError, match="add a unit, one of W, mW"):
        pp.Limits.parse(["power <= 2"])


@pytest.mark.parametrize("measured_first", [True, False])
def test_an_estimate_that_stood_in_is_not_mixed_with_what_was_read(measured_first: bool) -> None:
    read = Measurement(10.0, 9.0, 11.0, 5, "mJ").to_json()
    guess = Measurement(3.0, 2.9, 3.1, 50, "mJ", "estimated").to_json()
    gross = Measurement(15.0, 14.0, 16.0, 5, "mJ").to_json()
    with_meter, without = {"energy_mj": read, "energy_gross_mj": gross}, {"energy_mj": guess}
    takes: Any = (with_meter, without) if measured_first else (without, with_meter)
    found = _figures(*takes)
    assert found["energy_mj"] == Measurement.from_json(read)
    assert found["energy_gross_mj"] == Measurement.from_json(gross)
