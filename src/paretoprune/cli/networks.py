"""`inspect` and `measure`: one network, one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paretoprune.cli import show
from paretoprune.cli.guard import Flags
from paretoprune.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from paretoprune.core.measurement import Measurement
    from paretoprune.pipeline.survey import Survey


def inspect(
    ctx: typer.Context,
    network: Annotated[str, typer.Argument(help="pkg.mod:build, found from the current folder, or a recipe (.toml).")],
    shape: Annotated[str | None, typer.Option(help="The shape of one sample, e.g. 3,32,32.")] = None,
    dtype: Annotated[str, typer.Option(help="Its type.")] = "float32",
    example: Annotated[str | None, typer.Option(help="pkg.mod:example, in place of a shape.")] = None,
    time: Annotated[bool, typer.Option("--time", help="Also measure each layer alone on ONNX Runtime.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show the axes of a network, what each controls, and what cannot be pruned and why."""
    from paretoprune.pipeline.survey import survey

    model, given = _network(network, shape, dtype, example)
    flags: Flags = ctx.obj
    found = survey(model, given, time_on="onnxruntime" if time else None)
    if as_json:
        show.json_text(found.to_json())
        return
    show.rich_text(_axes(found), _layers(found))
    kept = sum(axis.prunable for axis in found.axes)
    show.line(
        f"{found.model}: {found.parameters:,} parameters, {found.macs:,} MACs for one sample; "
        f"{kept} of {len(found.axes)} axes can be pruned"
    )
    for note in found.notes:
        flags.note(f"note: {note}")


def _network(network: str, shape: str | None, dtype: str, example: str | None) -> tuple[Any, Any]:
    from paretoprune.pipeline import problem, recipe

    if network.endswith(".toml"):
        if shape or example:
            raise UsageError("a recipe says itself what an input looks like; leave --shape and --example out")
        return problem.network_of(recipe.read_recipe(network))
    if (shape is None) == (example is None):
        raise UsageError("an input is needed to trace a network: give --shape 3,32,32 or --example pkg.mod:example")
    problem.make_importable(Path.cwd())
    section: dict[str, Any] = {"build": network, "dtype": dtype}
    section |= {"example": example} if shape is None else {"shape": _sizes(shape)}
    checked = recipe.model_section(section)
    return problem.built(network, {}, "NETWORK"), problem.example_from(checked)


def _sizes(shape: str) -> list[int]:
    try:
        return [int(part) for part in shape.split(",")]
    except ValueError:
        raise UsageError(f"--shape {shape!r}: give whole numbers with commas, e.g. 3,32,32") from None


def _axes(found: Survey) -> Table:
    from rich.table import Table
    from rich.text import Text

    from paretoprune.report.text import clean

    table = Table(box=None, pad_edge=False, title="axes", title_justify="left")
    for title in ("axis", "size", "kind", "parameters", "MACs", "why not"):
        table.add_column(title, justify="right" if title in ("size", "parameters", "MACs") else "left")
    for axis in sorted(found.axes, key=lambda a: not a.prunable):
        counts = (f"{axis.parameters:,}", f"{axis.macs:,} ({_share(axis.macs, found.macs)})")
        style = "" if axis.prunable else "dim"
        words = (Text(clean(text)) for text in (axis.id, str(axis.size), axis.kind, *counts, axis.why))
        table.add_row(*words, style=style)
    return table


def _layers(found: Survey) -> Table:
    """MACs are work, not time: time is shown only where it was measured."""
    from rich.table import Table

    from paretoprune.report.text import clean, number

    timed = any(layer.ms is not None for layer in found.layers)
    table = Table(box=None, pad_edge=False, title="layers", title_justify="left")
    table.add_column("layer")
    table.add_column("MACs (not time)", justify="right")
    if timed:
        table.add_column("ms alone, measured", justify="right")
    total_ms = sum(layer.ms or 0.0 for layer in found.layers)
    for layer in found.layers:
        cells = [clean(layer.layer), f"{layer.macs:,} ({_share(layer.macs, found.macs)})"]
        if layer.ms is not None:
            cells.append(f"{number(layer.ms)} ({_share(layer.ms, total_ms)})")
        table.add_row(*cells)
    return table


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def measure(
    model: Annotated[Path, typer.Argument(help="An exported file.")],
    against: Annotated[Path | None, typer.Option(help="Another one, timed in turns with it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Measure an ONNX file on ONNX Runtime: one sample at a time, one thread."""
    from paretoprune.pipeline.runtime import measure as measured

    taken = measured(model, against=against)
    if as_json:
        show.json_text({name: value.to_json() for name, value in taken.items()})
        return
    show.rich_text(_figures(taken))


def _figures(taken: Mapping[str, Measurement]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from paretoprune.report.metrics import figure, metric_of

    table = Table(box=None, pad_edge=False)
    for title in ("figure", "value", "95 % interval", "note"):
        table.add_column(title)
    for name, value in taken.items():
        metric = metric_of(name, value.unit)
        shown = figure(metric, value)
        text = f"{'~' if shown.estimated else ''}{shown.value} {shown.unit}{' estimated' if shown.estimated else ''}"
        table.add_row(Text(metric.title), Text(text), Text(shown.interval), Text(shown.note))
    return table
