"""A meter, opened: energy between two moments, with a time limit on every answer and no belief in nonsense."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from paretoprune.core.errors import MeterError, UsageError
from paretoprune.core.plugin import load_reference
from paretoprune.core.protocols import Counter, Meter, PowerSensor

ANSWER_S = 5.0
"""A meter that takes longer for one reading is given up."""
PERIOD_S = 0.05
"""Between two samples of the power, unless the meter says how often its readings are new."""
WINDOW_S = 0.5
PERIODS = 10
"""A window holds at least so many new readings."""

Clock = Callable[[], float]
T = TypeVar("T")


@dataclass(frozen=True)
class Window:
    """What a meter saw between two moments."""

    seconds: float
    joules: float


class Reader(Protocol):
    """A meter as it is used here. `what` is what it sees, in words; `window_s` how long a window should last.

    Every method raises MeterError where the meter fails.
    """

    name: str
    what: str
    window_s: float

    def begin(self) -> None: ...

    def end(self) -> Window: ...

    def cancel(self) -> None:
        """Forget the window that was begun."""
        ...


def open_meter(given: str | Meter | Reader) -> Reader:
    """A user's meter: "package.module:Class", a class without arguments, or an object. It is asked once, to see that
    it answers.

    Raises UsageError for what is no meter, MeterError for one that does not answer.
    """
    meter: Any = load_reference("meter", given) if isinstance(given, str) else given
    if all(callable(getattr(meter, m, None)) for m in ("begin", "end", "cancel")):
        return meter  # type: ignore[no-any-return]
    if isinstance(meter, type) or not hasattr(meter, "name"):
        meter = _made(meter, given)
    name = getattr(meter, "name", None)
    kind = next((m for m in ("joules", "watts") if callable(getattr(meter, m, None))), None)
    if not isinstance(name, str) or not name or kind is None:
        raise UsageError(
            f"{given!r} is not a meter: it needs a name (a text), and joules() (a running count) or watts() (now)"
        )
    period_s = getattr(meter, "period_s", PERIOD_S)
    if not isinstance(period_s, (int, float)) or not (math.isfinite(period_s) and 0 < period_s <= 60):
        raise UsageError(
            f"meter {name!r} has period_s={period_s!r}: give the seconds between two new readings, up to 60"
        )
    reader: Reader = (CountReader if kind == "joules" else PowerReader)(meter, period_s, ANSWER_S)
    reader.begin()
    reader.cancel()
    return reader


def _made(factory: Any, given: Any) -> Any:
    if not callable(factory):
        return factory
    try:
        return factory()
    except Exception as error:
        raise UsageError(f"meter {given!r} cannot be made: {type(error).__name__}: {_line(error)}") from error


class Asking:
    """Asks one meter, each time in a thread of its own: one that hangs is not waited for, and not asked again."""

    def __init__(self, name: str, limit_s: float = ANSWER_S) -> None:
        self._name, self._limit_s = name, limit_s
        self._hangs = False

    def __call__(self, ask: Callable[[], T]) -> T:
        if self._hangs:
            raise MeterError(f"meter {self._name!r} stopped answering before")
        answer: Future[T] = Future()
        threading.Thread(target=_answer, args=(ask, answer), daemon=True).start()
        try:
            return answer.result(self._limit_s)
        except NoAnswer as error:
            if answer.done():
                raise failed(self._name, error) from error
            self._hangs = True
            raise hanging(self._name, self._limit_s) from error
        except Exception as error:
            raise failed(self._name, error) from error


def _answer(ask: Callable[[], T], answer: Future[T]) -> None:
    try:
        answer.set_result(ask())
    except BaseException as error:  # noqa: BLE001 - it is raised where it was asked for
        answer.set_exception(error)


def hanging(name: str, limit_s: float) -> MeterError:
    return MeterError(f"meter {name!r} stopped answering: no reading within {limit_s:g} s; check its connection")


def failed(name: str, error: BaseException) -> MeterError:
    return MeterError(f"meter {name!r} failed with {type(error).__name__}: {_line(error)}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or "no message"


def number(name: str, value: Any, unit: str) -> float:
    """A reading as a float. Raises MeterError for what is no finite number."""
    try:
        reading = float(value)
    except (TypeError, ValueError) as error:
        raise MeterError(f"meter {name!r} gave {value!r} for {unit}: expected a number") from error
    if not math.isfinite(reading):
        raise MeterError(f"meter {name!r} gave {reading} {unit}: expected a finite number")
    return reading


class CountReader:
    """The difference of two readings of a running count."""

    def __init__(
        self, meter: Counter, period_s: float = PERIOD_S, limit_s: float = ANSWER_S, clock: Clock = time.perf_counter
    ) -> None:
        self.name, self.what = meter.name, ""
        self.window_s = max(WINDOW_S, PERIODS * period_s)
        self._meter, self._clock = meter, clock
        self._ask = Asking(meter.name, limit_s)
        self._start = (0.0, 0.0)

    def begin(self) -> None:
        self._start = self._ask(self._reading)

    def end(self) -> Window:
        (before, start), (now, stop) = self._start, self._ask(self._reading)
        if stop < start:
            raise MeterError(f"meter {self.name!r} ran backwards, from {start:g} to {stop:g} J: joules() must not fall")
        return Window(now - before, stop - start)

    def cancel(self) -> None:
        return

    def _reading(self) -> tuple[float, float]:
        """(moment, joules): the middle of the time that the answer took."""
        asked = self._clock()
        value = self._meter.joules()
        return (asked + self._clock()) / 2, number(self.name, value, "J")


class PowerReader:
    """Samples of the power, taken in a thread from `begin` to `end`, integrated by the trapezium rule."""

    def __init__(
        self,
        meter: PowerSensor,
        period_s: float = PERIOD_S,
        limit_s: float = ANSWER_S,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.name, self.what = meter.name, f"power sampled every {1e3 * period_s:g} ms"
        self.window_s = max(WINDOW_S, PERIODS * period_s)
        self._meter, self._period_s, self._limit_s, self._clock = meter, period_s, limit_s, clock
        self._hangs = False
        self._stop, self._taken = threading.Event(), Future[list[tuple[float, float]]]()
        self._first = threading.Event()

    def begin(self) -> None:
        if self._hangs:
            raise MeterError(f"meter {self.name!r} stopped answering before")
        self._stop, self._first = threading.Event(), threading.Event()
        self._taken = Future()
        ask = self._sampling(self._stop, self._first)
        threading.Thread(target=_answer, args=(ask, self._taken), daemon=True).start()
        if not self._first.wait(self._limit_s):
            self.cancel()
            self._hangs = True
            raise hanging(self.name, self._limit_s)
        if self._taken.done():
            self._result()

    def end(self) -> Window:
        self._stop.set()
        return integral(self._result())

    def cancel(self) -> None:
        self._stop.set()

    def _result(self) -> list[tuple[float, float]]:
        try:
            return self._taken.result(self._limit_s)
        except MeterError:
            raise
        except NoAnswer as error:
            if self._taken.done():
                raise failed(self.name, error) from error
            self._hangs = True
            raise hanging(self.name, self._limit_s) from error
        except Exception as error:
            raise failed(self.name, error) from error

    def _sampling(self, stop: threading.Event, first: threading.Event) -> Callable[[], list[tuple[float, float]]]:
        """A sample at once, then one per period, and one when it is stopped."""

        def sample() -> list[tuple[float, float]]:
            taken: list[tuple[float, float]] = []
            try:
                while not stop.is_set():
                    taken.append(self._reading())
                    first.set()
                    stop.wait(self._period_s)
                taken.append(self._reading())
            finally:
                first.set()
            return taken

        return sample

    def _reading(self) -> tuple[float, float]:
        asked = self._clock()
        watts = self._meter.watts()
        return (asked + self._clock()) / 2, number(self.name, watts, "W")


def integral(samples: list[tuple[float, float]]) -> Window:
    """Of (moment in s, W), by the trapezium rule."""
    table = np.asarray(samples, dtype=np.float64)
    return Window(float(table[-1, 0] - table[0, 0]), float(np.trapezoid(table[:, 1], table[:, 0])))
