"""Bars with elapsed time and time left on a terminal; one plain line per stage everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from paretoprune.core.progress import Progress, Stage
from paretoprune.report.text import clean, duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichBars
    from rich.progress import TaskID

_HEARTBEAT_S = 30.0


@contextmanager
def progress(console: Console | None = None) -> Iterator[Progress]:
    """Bars on `console` (standard error by default) if it is a terminal, else plain lines to its file."""
    from rich.console import Console

    console = Console(stderr=True) if console is None else console
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainProgress(console.file)
        return
    with _bars(console) as bars:
        yield BarProgress(bars)


def _bars(console: Console) -> RichBars:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichBars

    return RichBars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False, style="dim"),
        console=console,
    )


class BarProgress:
    """Stages as bars of one live display."""

    def __init__(self, bars: RichBars) -> None:
        self._bars = bars

    @contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Stage]:
        task = self._bars.add_task(clean(name, 40), total=total, note="")
        bar = _Bar(self._bars, task)
        try:
            yield bar
        except BaseException:
            self._bars.update(task, note="stopped")
            self._bars.stop_task(task)
            raise
        self._bars.update(task, total=bar.done or 1, completed=bar.done or 1, note="")
        self._bars.stop_task(task)


class _Bar:
    def __init__(self, bars: RichBars, task: TaskID) -> None:
        self._bars, self._task, self.done = bars, task, 0

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done += n
        self._bars.update(self._task, advance=n, note=clean(note, 60))


class PlainProgress:
    """A line when a stage ends, and one every 30 seconds while it runs; for logs."""

    def __init__(self, file: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = sys.stderr if file is None else file
        self._clock = clock

    @contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Stage]:
        line = _Line(clean(name, 80), total, self._file, self._clock)
        try:
            yield line
        except BaseException:
            line.say("stopped after ")
            raise
        line.say("done, ")


class _Line:
    def __init__(self, name: str, total: int | None, file: IO[str], clock: Callable[[], float]) -> None:
        self._name, self._total, self._file, self._clock = name, total, file, clock
        self._start = self._said = clock()
        self._done = 0

    def advance(self, n: int = 1, note: str = "") -> None:
        self._done += n
        if self._clock() - self._said >= _HEARTBEAT_S:
            self.say("", clean(note, 80))

    def say(self, state: str, note: str = "") -> None:
        self._said = self._clock()
        of = f" of {self._total}" if self._total is not None else ""
        tail = f": {note}" if note else ""
        spent = duration(self._said - self._start)
        print(f"{self._name}: {state}{self._done}{of} in {spent}{tail}", file=self._file, flush=True)
