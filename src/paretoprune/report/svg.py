"""Where each mark of a panel stands in a static drawing, in pixels. The template draws it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paretoprune.report.picture import Panel, Point, Span

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 14, 50


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A point and its error bars: `bar_x` is (x1, x2) at y, `bar_y` is (y1, y2) at x."""

    row: int
    x: float
    y: float
    bar_x: Span | None
    bar_y: Span | None


@dataclass(frozen=True)
class Drawing:
    panel: Panel
    marks: tuple[Mark, ...]
    line: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_limit: float | None
    y_limit: float | None
    size: tuple[int, int] = (WIDTH, HEIGHT)
    box: tuple[int, int, int, int] = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)


def draw(panel: Panel) -> Drawing:
    axes = _Axes(panel)
    return Drawing(
        panel,
        tuple(axes.mark(p) for p in panel.points),
        " ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in panel.steps),
        tuple(Tick(axes.x(v), f"{v:.4g}") for v in ticks(panel.x_range, panel.log)),
        tuple(Tick(axes.y(v), f"{v:.4g}") for v in ticks(panel.y_range, False)),
        None if panel.x_limit is None else axes.x(panel.x_limit),
        None if panel.y_limit is None else axes.y(panel.y_limit),
    )


def ticks(span: Span, log: bool) -> list[float]:
    """Round values within the span: steps of 1, 2 or 5 times a power of ten."""
    low, high = span
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [m * 10.0**k for k in powers for m in (1, 2, 5)]
        inside = [v for v in found if low <= v <= high]
        return inside if len(inside) <= 8 else [v for v in inside if math.log10(v) % 1 < 0.01]
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [i * step for i in range(first, last + 1)]


class _Axes:
    """From values to pixels."""

    def __init__(self, panel: Panel) -> None:
        self._log = panel.log
        self._x = tuple(map(self._bent, panel.x_range))
        self._y = panel.y_range

    def _bent(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def x(self, value: float) -> float:
        share = (self._bent(value) - self._x[0]) / (self._x[1] - self._x[0])
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self._y[0]) / (self._y[1] - self._y[0])
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def mark(self, p: Point) -> Mark:
        bar_x = (self.x(p.x_span[0]), self.x(p.x_span[1])) if p.x_span else None
        bar_y = (self.y(p.y_span[0]), self.y(p.y_span[1])) if p.y_span else None
        return Mark(p.row, self.x(p.x), self.y(p.y), bar_x, bar_y)
