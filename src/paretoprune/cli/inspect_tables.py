"""What `inspect` shows of a network: readable for three axes and for three thousand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from paretoprune.report.text import COUNTS, clean, number, scaled

if TYPE_CHECKING:
    from rich.console import RenderableType

    from paretoprune.pipeline.survey import AxisFacts, BlockFacts, LayerFacts, Survey

ROWS = 25
"""Of one table, unless all are asked for."""
_NAMED = 3
"""Axes that a group of frozen ones names."""
_PLACE = re.compile(r" at [^ ]+( \([^)]*\))?$")
"""Where in the network a reason arises; reasons that differ in it alone are one."""


def tables(found: Survey, *, everything: bool) -> Iterator[RenderableType]:
    """`everything`: a row for each axis and layer; else the largest, and frozen axes by their reason."""
    open_, frozen = ([a for a in found.axes if a.prunable is wanted] for wanted in (True, False))
    if open_:
        yield from _prunable(open_, found, len(open_) if everything else ROWS)
    if frozen:
        yield from _frozen(frozen) if everything else _reasons(frozen)
    if found.blocks:
        yield from _blocks(found.blocks, found, everything=everything)
    yield from _layers(found.layers, found.macs, len(found.layers) if everything else ROWS)


def _prunable(axes: Sequence[AxisFacts], found: Survey, rows: int) -> Iterator[RenderableType]:
    table = _table("axes that can be pruned", "axis", ">size", "kind", ">parameters", ">%", ">MACs", ">%")
    ordered = sorted(axes, key=lambda a: (-a.macs, -a.parameters))
    for axis in ordered[:rows]:
        _row(
            table,
            axis.id,
            f"{axis.size:,}",
            axis.kind,
            counted(axis.parameters),
            _share(axis.parameters, found.parameters),
            counted(axis.macs),
            _share(axis.macs, found.macs),
        )
    yield table
    yield _more(len(axes) - rows, "axes that can be pruned")
    yield Text(
        "Parameters and MACs are those of every tensor and layer that the axis takes part in: what would vanish with "
        "all of its positions. Two axes of one layer share it, so the shares add up to more than 100 %.\n",
        style="dim",
    )


def _reasons(axes: Sequence[AxisFacts]) -> Iterator[RenderableType]:
    groups: dict[str, list[AxisFacts]] = {}
    for axis in axes:
        groups.setdefault(_PLACE.sub("", axis.why), []).append(axis)
    table = _table("frozen axes", "why", ">axes", "which")
    ordered = sorted(groups.items(), key=lambda kv: -len(kv[1]))
    for why, members in ordered[:ROWS]:
        named = ", ".join(a.id for a in members[:_NAMED]) + (", …" if len(members) > _NAMED else "")
        _row(table, why, f"{len(members):,}", named)
    yield table
    yield _more(len(ordered) - ROWS, "reasons")
    yield Text()


def _frozen(axes: Sequence[AxisFacts]) -> Iterator[RenderableType]:
    table = _table("frozen axes", "axis", ">size", ">parameters", ">MACs", "why")
    for axis in axes:
        _row(table, axis.id, f"{axis.size:,}", counted(axis.parameters), counted(axis.macs), axis.why)
    yield table
    yield Text()


def _blocks(blocks: Sequence[BlockFacts], found: Survey, *, everything: bool) -> Iterator[RenderableType]:
    """Those that `blocks=` can drop in the order of the network; the others by their reason."""
    open_ = [b for b in blocks if b.removable]
    rows = len(open_) if everything else ROWS
    if open_:
        table = _table("residual blocks that can be dropped", "block", ">parameters", ">%", ">MACs", ">%")
        for b in open_[:rows]:
            shares = _share(b.parameters, found.parameters), _share(b.macs, found.macs)
            _row(table, b.name, counted(b.parameters), shares[0], counted(b.macs), shares[1])
        yield table
        yield _more(len(open_) - rows, "residual blocks")
    groups: dict[str, list[str]] = {}
    for b in blocks:
        if not b.removable:
            groups.setdefault(_PLACE.sub("", b.why), []).append(b.name)
    if groups:
        table = _table("residual blocks that stay", "why", ">blocks", "which")
        for why, names in groups.items():
            named = names if everything else names[:_NAMED]
            _row(table, why, f"{len(names):,}", ", ".join(named) + (", …" if len(names) > len(named) else ""))
        yield table
    yield Text()


def _layers(layers: Sequence[LayerFacts], macs: int, rows: int) -> Iterator[RenderableType]:
    """Equal layers are one row. MACs are work, not time: time is shown only where it was measured."""
    groups: dict[str, list[LayerFacts]] = {}
    for layer in layers:
        groups.setdefault(layer.layer, []).append(layer)
    timed = any(layer.ms is not None for layer in layers)
    times = [">ms alone, measured", ">%"] if timed else []
    table = _table("layers", "layer", ">times", ">MACs (not time)", ">%", *times)
    total = sum(layer.ms or 0.0 for layer in layers)
    most = sorted(groups, key=lambda name: -sum(g.macs for g in groups[name]))[:rows]
    for name in (n for n in groups if n in set(most)):
        work, ms = sum(g.macs for g in groups[name]), sum(g.ms or 0.0 for g in groups[name])
        last = [number(ms), _share(ms, total)] if timed else []
        _row(table, name, f"{len(groups[name]):,}", counted(work), _share(work, macs), *last)
    rest = macs - sum(layer.macs for layer in layers)
    if rest > 0:
        _row(table, "products outside such layers", "", counted(rest), _share(rest, macs), *["" for _ in times])
    yield table
    yield _more(len(groups) - rows, "kinds of layers with fewer MACs")


def counted(value: int) -> str:
    """ "1.18 M", "64"."""
    divisor, unit = scaled(float(value), COUNTS)
    return f"{value:,}" if divisor == 1 else f"{number(value / divisor)} {unit}"


def _table(title: str, *columns: str) -> Table:
    """Columns that begin with ">" are numbers."""
    table = Table(box=None, pad_edge=False, min_width=len(title), title=title, title_justify="left", title_style="bold")
    for column in columns:
        right = column.startswith(">")
        name = column.removeprefix(">")
        table.add_column(name, justify="right" if right else "left", no_wrap=right and " " not in name, overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(clean(cell)) for cell in cells))


def _more(count: int, what: str) -> Text:
    return Text(f"… and {count:,} more {what}; --all shows them" if count > 0 else "", style="dim")


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}" if whole else "–"
