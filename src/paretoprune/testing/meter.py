"""A meter that plays back what was recorded, and what every meter must be able to do."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from paretoprune.core.errors import FileError

Clock = Callable[[], float]


class RecordedMeter:
    """A trace of the power as a meter: `joules()` since its first moment, and `watts()` now. Deterministic.

    `trace`: (moment in s, W), moments rising; between two the power changes linearly. It plays against `clock` from
    the moment of the first answer, again and again from its start.
    """

    def __init__(
        self, trace: Sequence[tuple[float, float]], clock: Clock = time.perf_counter, name: str = "recorded"
    ) -> None:
        self.name = name
        self._clock, self._began = clock, math.nan
        self._trace = _checked(trace, name)

    @classmethod
    def read(cls, path: str | Path, clock: Clock = time.perf_counter) -> RecordedMeter:
        """From "s,W" lines (.csv, a heading is skipped) or a list of pairs (.json). Raises FileError."""
        file = Path(path)
        try:
            text = file.read_text("utf-8")
            pairs = json.loads(text) if file.suffix == ".json" else _lines(text)
            trace = [(float(moment), float(watts)) for moment, watts in pairs]
        except OSError as error:
            raise FileError(f"cannot read the trace {file}: {error.strerror or error}") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise FileError(f"{file} is no trace of the power: expected pairs of seconds and W ({error})") from error
        return cls(trace, clock, file.stem)

    def joules(self) -> float:
        rounds, moment = divmod(self._moment(), self._length())
        return rounds * self._until(self._length()) + self._until(moment)

    def watts(self) -> float:
        moment = self._moment() % self._length()
        for (t0, p0), (t1, p1) in pairwise(self._trace):
            if t0 <= moment <= t1:
                return p0 + (p1 - p0) * (moment - t0) / (t1 - t0)
        return self._trace[-1][1]

    def _moment(self) -> float:
        now = self._clock()
        if math.isnan(self._began):
            self._began = now
        return now - self._began

    def _length(self) -> float:
        return self._trace[-1][0]

    def _until(self, moment: float) -> float:
        """Joules from the start of the trace to `moment`, by the trapezium rule."""
        total = 0.0
        for (t0, p0), (t1, p1) in pairwise(self._trace):
            if moment <= t0:
                break
            stop = min(moment, t1)
            end = p0 + (p1 - p0) * (stop - t0) / (t1 - t0)
            total += (p0 + end) / 2 * (stop - t0)
        return total


def _checked(trace: Sequence[tuple[float, float]], name: str) -> list[tuple[float, float]]:
    rising = all(a[0] < b[0] for a, b in pairwise(trace))
    sound = all(math.isfinite(moment) and math.isfinite(watts) and watts >= 0 for moment, watts in trace)
    if len(trace) < 2 or not rising or not sound:
        raise FileError(f"trace {name!r}: expected two or more (seconds, W), the seconds rising, no power below 0")
    start = trace[0][0]
    return [(moment - start, watts) for moment, watts in trace]


def _lines(text: str) -> list[list[str]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    return rows[1:] if rows and not _is_number(rows[0][0]) else rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class MeterCase:
    """Inherit it, and give `make()`. It asks a meter as paretoprune will."""

    limit_s = 5.0
    """In which a meter must answer."""

    def make(self) -> Any:
        raise NotImplementedError("give make(self), which returns the meter")

    def test_it_has_a_name_and_one_way_to_be_read(self) -> None:
        meter = self.make()
        assert isinstance(meter.name, str)
        assert meter.name
        assert callable(getattr(meter, "joules", None)) or callable(getattr(meter, "watts", None))

    def test_it_says_how_often_its_readings_are_new_if_at_all(self) -> None:
        period_s = getattr(self.make(), "period_s", 0.05)
        assert 0 < period_s <= 60

    def test_its_readings_are_numbers_in_time_and_a_count_never_falls(self) -> None:
        meter = self.make()
        counts = callable(getattr(meter, "joules", None))
        readings = []
        for _ in range(3):
            started = time.monotonic()
            readings.append(float(meter.joules() if counts else meter.watts()))
            assert time.monotonic() - started < self.limit_s
        assert all(math.isfinite(reading) for reading in readings)
        if counts:
            assert readings == sorted(readings)
