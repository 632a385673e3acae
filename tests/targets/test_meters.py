"""Energy by a meter: what is subtracted, what is reported, and meters of one's own."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretoprune.core.errors import FileError, MeterError, UsageError
from paretoprune.targets import open_meter
from paretoprune.targets.metering import Energy, read_energy
from paretoprune.targets.meters import CountReader, PowerReader, integral
from paretoprune.testing import MeterCase, RecordedMeter

CALL_MS = 2
WINDOW_S = 0.4999
"""250 calls; half a second of sleep."""


class Bench:
    """A board of `idle` W (a function of the moment) that draws `more` W while it computes.

    Its time is counted in whole milliseconds by what is done.
    """

    name = "bench supply"

    def __init__(self, idle: Callable[[float], float] = lambda _: 3.0, more: float = 5.0) -> None:
        self.ms, self.spent, self.idle, self.more = 0, 0.0, idle, more

    def clock(self) -> float:
        return self.ms / 1000

    def joules(self) -> float:
        return self.spent

    def sleep(self, seconds: float) -> None:
        self.spend(math.ceil(1000 * seconds), 0.0)

    def work(self) -> None:
        self.spend(CALL_MS, self.more)

    def spend(self, ms: int, more: float) -> None:
        self.spent += (self.idle((self.ms + ms / 2) / 1000) + more) * ms / 1000
        self.ms += ms

    def read(self, meter: Any = None) -> Energy:
        reader = CountReader(meter or self, clock=self.clock)
        reader.window_s = WINDOW_S
        return read_energy(reader, self.work, clock=self.clock, sleep=self.sleep)


def test_the_idle_power_is_subtracted_and_both_figures_are_kept() -> None:
    found = Bench().read()
    assert found.net_mj is not None
    assert (found.net_mj.value, found.net_mj.unit) == (pytest.approx(10.0), "mJ")
    assert found.gross_mj.value == pytest.approx(16.0)
    assert (found.idle_w.value, found.idle_w.unit) == (pytest.approx(3.0), "W")
    assert {m.status for m in (found.net_mj, found.gross_mj, found.idle_w)} == {"measured"}
    assert "idle power subtracted, read from bench supply" in found.net_mj.note
    assert "idle power included" in found.gross_mj.note
    assert found.net_mj.runs == 5 * 250


def test_a_drift_of_the_idle_power_cancels() -> None:
    found = Bench(lambda moment: 3.0 + 0.5 * moment).read()
    assert found.net_mj is not None
    assert found.net_mj.value == pytest.approx(10.0)
    assert found.gross_mj.high - found.gross_mj.low > 1.0


def test_what_does_not_stand_out_of_the_idle_power_is_no_figure() -> None:
    noise = np.random.default_rng(0).normal(3.0, 0.2, 50_000)
    found = Bench(lambda moment: float(noise[int(moment * 1000)]), more=0.0).read()
    assert found.net_mj is None
    assert "did not stand out of the idle power" in found.lost
    assert found.gross_mj.value == pytest.approx(6.0, rel=0.2)


def test_noise_is_met_with_more_windows() -> None:
    noise = np.random.default_rng(0).normal(3.0, 0.3, 50_000)
    found = Bench(lambda moment: float(noise[int(moment * 1000)]), more=0.5).read()
    assert found.net_mj is not None
    assert found.net_mj.runs > 5 * 250
    assert found.net_mj.low <= 1.0 <= found.net_mj.high


def test_no_load_is_rarely_taken_for_one() -> None:
    """Each look would be wrong one time in forty; there is one, at the end."""
    found = []
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(3.0, 0.2, 50_000)
        found.append(Bench(lambda moment, noise=noise: float(noise[int(moment * 1000)]), more=0.0).read())
    assert sum(each.net_mj is not None for each in found) <= 5
    assert {each.gross_mj.runs for each in found} == {15 * 250}


def test_a_recorded_trace_gives_the_same_figures_each_time() -> None:
    """A square wave in step with the protocol: 0.55 s of rest at 3 W, 0.55 s of work at 8 W."""
    edge = 1e-6
    wave = [(0.0, 3.0), (0.55 - edge, 3.0), (0.55, 8.0), (1.1 - edge, 8.0), (1.1, 3.0)]

    def read() -> Energy:
        board = Bench()
        meter = RecordedMeter(wave, board.clock)
        meter.joules()
        return board.read(meter)

    found = read()
    assert found.net_mj is not None
    assert found.net_mj.value == pytest.approx(10.0, rel=1e-3)
    assert found.gross_mj.value == pytest.approx(16.0, rel=1e-3)
    again = read()
    for taken, retaken in ((found.net_mj, again.net_mj), (found.gross_mj, again.gross_mj)):
        assert taken is not None
        assert retaken is not None
        assert (taken.low, taken.value, taken.high) == (retaken.low, retaken.value, retaken.high)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_trace_is_read_from_a_file(tmp_path: Path, suffix: str) -> None:
    file, now = tmp_path / f"usb{suffix}", iter([10.0, 11.0, 12.5])
    file.write_text("s,W\n5,2\n7,4\n" if suffix == ".csv" else "[[5, 2], [7, 4]]")
    meter = RecordedMeter.read(file, lambda: next(now))
    assert (meter.name, meter.joules()) == ("usb", 0.0)
    assert meter.joules() == pytest.approx(2.5)
    assert meter.watts() == pytest.approx(2.5)


@pytest.mark.parametrize(
    "text", ["", "s,W\n1,2\n", "1,2\n1,3\n", "1,2\n2,nan\n", "1,2\n2,-3\n", "1\n2\n", "\x00,\x00\n1,a\n"]
)
def test_what_is_no_trace(tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(FileError, match="trace"):
        RecordedMeter.read(file)
    with pytest.raises(FileError, match="cannot read the trace"):
        RecordedMeter.read(tmp_path / "none.csv")


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0, 100)), min_size=2, max_size=8), st.floats(0, 0.999))
def test_the_count_of_a_trace_is_the_integral_of_its_power(steps: list[tuple[float, float]], share: float) -> None:
    moments = np.cumsum([step for step, _ in steps])
    trace = [(float(m), watts) for m, (_, watts) in zip(moments, steps, strict=True)]
    length = trace[-1][0] - trace[0][0]
    now = iter([0.0, share * length, length * (1 - 1e-9)])
    meter = RecordedMeter(trace, lambda: next(now))
    meter.joules()
    part, whole = meter.joules(), meter.joules()
    assert 0 <= part <= whole + 1e-9
    assert math.isclose(whole, integral(trace).joules, rel_tol=1e-6, abs_tol=1e-9)


class Steady:
    """A USB meter that shows 5 W."""

    name, period_s = "usb", 0.01

    def watts(self) -> float:
        return 5.0


def test_momentary_power_is_sampled_and_integrated() -> None:
    reader = PowerReader(Steady(), 0.01)
    reader.begin()
    time.sleep(0.1)
    window = reader.end()
    assert 0.1 <= window.seconds < 1.0
    assert window.joules == pytest.approx(5.0 * window.seconds)
    assert reader.what == "power sampled every 10 ms"


def test_samples_are_integrated_by_the_trapezium_rule() -> None:
    window = integral([(1.0, 2.0), (2.0, 4.0), (2.5, 0.0)])
    assert (window.seconds, window.joules) == (1.5, 3.0 + 1.0)


def test_a_meter_is_a_class_an_object_or_a_reference() -> None:
    for meter in (Steady, Steady(), lambda: Steady()):
        reader = open_meter(meter)
        assert (reader.name, reader.window_s) == ("usb", 0.5)
        assert open_meter(reader) is reader
    assert open_meter(f"{__name__}:Steady").name == "usb"


def test_a_slow_meter_gets_longer_windows() -> None:
    slow = Steady()
    slow.period_s = 1.0
    assert open_meter(slow).window_s == 10.0


class Broken:
    def __init__(self) -> None:
        raise OSError("no such port")


class Nameless:
    def joules(self) -> float:
        return 1.0


class Mute:
    name = "mute"


class Hasty(Steady):
    period_s = 0.0


@pytest.mark.parametrize(
    ("meter", "words"),
    [
        (Broken, "cannot be made: OSError: no such port"),
        (Nameless, "is not a meter: it needs a name"),
        (Mute(), r"joules\(\) \(a running count\) or watts\(\)"),
        (3, "is not a meter"),
        (Hasty, "period_s=0.0: give the seconds"),
        (f"{__name__}:Nobody", "has no attribute"),
        ("bench", "bench"),
    ],
)
def test_what_is_no_meter(meter: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_meter(meter)


def test_a_meter_that_fails_at_once_is_refused_before_any_work() -> None:
    class Dead(Steady):
        def watts(self) -> float:
            raise OSError("device not configured")

    with pytest.raises(MeterError, match="'usb' failed with OSError: device not configured"):
        open_meter(Dead)


def test_work_that_fails_ends_its_window() -> None:
    reader = PowerReader(Steady(), 0.01)
    with pytest.raises(ZeroDivisionError):
        read_energy(reader, lambda: 1 // 0, sleep=lambda _: None)
    reader.begin()
    assert reader.end().seconds >= 0


class TestRecordedMeter(MeterCase):
    def make(self) -> RecordedMeter:
        return RecordedMeter([(0.0, 1.0), (1.0, 2.0)])


class TestBench(MeterCase):
    def make(self) -> Bench:
        return Bench()


def test_the_suite_finds_a_meter_that_falls() -> None:
    falling = itertools.count(0, -1)

    class Case(MeterCase):
        def make(self) -> Any:
            meter = Bench()
            meter.joules = lambda: float(next(falling))
            return meter

    with pytest.raises(AssertionError):
        Case().test_its_readings_are_numbers_in_time_and_a_count_never_falls()
