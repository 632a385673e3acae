"""FAULTS 54: energy meters that stop answering or answer nonsense. Never 0, never a wait without end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import paretoprune as pp
from paretoprune.core.errors import MeterError
from paretoprune.core.measurement import Measurement
from paretoprune.targets import LayerSpec, OnnxRuntime, Timing, measure_file
from paretoprune.targets.layers import layer_model
from paretoprune.targets.meters import CountReader, PowerReader

pytestmark = pytest.mark.fault

LIMIT_S = 0.3
KEPT = {"latency_ms", "cpu_ms", "wall_ms", "size_bytes", "macs", "energy_analytic_mj", "fps", "power_w"}


@pytest.fixture
def hanging() -> Iterator[Callable[[], float]]:
    """A call that does not return before the test has ended."""
    ended = threading.Event()

    def hang() -> float:
        ended.wait(60)
        return 0.0

    yield hang
    ended.set()


@pytest.fixture
def measured(tmp_path: Path) -> Callable[[Any], Mapping[str, Measurement]]:
    spec = LayerSpec("linear", 64, 64)
    path = tmp_path / "f.onnx"
    onnx.save(layer_model(spec), path)

    def measure(reader: Any) -> Mapping[str, Measurement]:
        reader.window_s = 0.02
        feed = {"x": np.asarray(spec.example())}
        return measure_file(OnnxRuntime(), path, feed, timing=Timing(pairs=10, max_pairs=10), meter=reader)

    return measure


class Meter:
    """Sound for `sound` readings, then as `broken` says."""

    name = "mine"

    def __init__(self, broken: Callable[[], Any], sound: int = 6, watts: float = 4.0) -> None:
        self.broken, self.sound, self.power, self.asked = broken, sound, watts, 0

    def joules(self) -> float:
        return self._answer(self.power * time.perf_counter())

    def watts(self) -> float:
        return self._answer(self.power)

    def _answer(self, sound: float) -> float:
        self.asked += 1
        return sound if self.asked <= self.sound else self.broken()


def stands_in(found: Mapping[str, Measurement], words: str) -> None:
    """Everything else was measured, and an estimate that says why stands for the energy."""
    assert found.keys() >= KEPT
    assert "energy_gross_mj" not in found
    assert found["energy_mj"].status == found["power_w"].status == "estimated"
    assert found["energy_mj"].value > 0
    assert found["energy_mj"].note.startswith("estimated: CPU seconds")
    assert words in found["energy_mj"].note
    assert found["latency_ms"].status == "measured"


@pytest.mark.parametrize("kind", [CountReader, PowerReader])
def test_54_a_meter_that_hangs_is_given_up_and_not_asked_again(kind: Any, measured: Any, hanging: Any) -> None:
    reader = kind(Meter(hanging), 0.001, LIMIT_S)
    started = time.monotonic()
    stands_in(measured(reader), "meter 'mine' stopped answering: no reading within 0.3 s")
    assert time.monotonic() - started < 20
    started = time.monotonic()
    with pytest.raises(MeterError, match="stopped answering before"):
        reader.begin()
    assert time.monotonic() - started < LIMIT_S


def cut() -> float:
    raise OSError("cable\npulled")


@pytest.mark.parametrize("kind", [CountReader, PowerReader])
@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (cut, "meter 'mine' failed with OSError: cable pulled"),
        (lambda: float("nan"), "gave nan"),
        (lambda: float("inf"), "gave inf"),
        (lambda: "3 W", "gave '3 W' for"),
        (lambda: None, "gave None for"),
    ],
)
def test_54_a_meter_that_raises_or_gives_no_number(kind: Any, broken: Any, words: str, measured: Any) -> None:
    stands_in(measured(kind(Meter(broken), 0.001, LIMIT_S)), words)


def test_54_a_timeout_of_the_meters_own_is_an_error_like_others(measured: Any) -> None:
    def late() -> float:
        raise TimeoutError("its port is silent")

    for kind in (CountReader, PowerReader):
        stands_in(measured(kind(Meter(late), 0.001, LIMIT_S)), "failed with TimeoutError: its port is silent")


def test_54_a_count_that_runs_backwards(measured: Any) -> None:
    stands_in(measured(CountReader(Meter(lambda: 0.0, sound=5), 0.001, LIMIT_S)), "ran backwards, from")


def test_54_a_count_that_stands_still_is_not_zero_energy(measured: Any) -> None:
    stands_in(measured(CountReader(Meter(lambda: 7.0, sound=0), 0.001, LIMIT_S)), "stood still while the network ran")


@pytest.mark.parametrize(("watts", "words"), [(5.0, "gave 5 W all the time, idle or not"), (0.0, "stood still")])
def test_54_a_sensor_that_shows_one_value_for_ever(watts: float, words: str, measured: Any) -> None:
    stands_in(measured(PowerReader(Meter(lambda: watts, sound=0), 0.001, LIMIT_S)), words)


def test_54_power_that_does_not_change_with_the_load_is_not_zero_energy(measured: Any) -> None:
    """What the meter saw is kept; the part of the network is an estimate."""
    random = np.random.default_rng(0)
    reader = PowerReader(Meter(lambda: random.normal(5.0, 1.0), sound=0), 0.002, LIMIT_S)
    found = {**measured(reader)}
    if found["energy_mj"].status == "measured":  # by chance the noise stood out
        pytest.skip("the noise looked like a load this time")
    gross = found.pop("energy_gross_mj")
    stands_in(found, "did not stand out of the idle power")
    assert (gross.status, gross.value > 0) == ("measured", True)


def test_54_a_meter_that_never_answers_is_refused_before_any_work(hanging: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("paretoprune.targets.meters.ANSWER_S", LIMIT_S)
    with pytest.raises(MeterError, match="stopped answering: no reading within 0.3 s; check its connection"):
        pp.measure("none.onnx", meter=Meter(hanging, sound=0))
