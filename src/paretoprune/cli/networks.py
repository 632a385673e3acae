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


Target = Annotated[
    str,
    typer.Option(
        help="The runtime: onnxruntime, openvino, torch, torch-compile, executorch, sparse-cpu, openvino-sparse, "
        "cuda, onnxruntime-cuda, onnxruntime-tensorrt, or your own as module:Class."
    ),
]


def inspect(
    ctx: typer.Context,
    network: Annotated[str, typer.Argument(help="pkg.mod:build, found from the current folder, or a recipe (.toml).")],
    shape: Annotated[str | None, typer.Option(help="The shape of one sample, e.g. 3,32,32.")] = None,
    dtype: Annotated[str, typer.Option(help="Its type.")] = "float32",
    example: Annotated[str | None, typer.Option(help="pkg.mod:example, in place of a shape.")] = None,
    time: Annotated[bool, typer.Option("--time", help="Also measure each layer alone on the target.")] = False,
    target: Target = "onnxruntime",
    everything: Annotated[bool, typer.Option("--all", help="Every axis and layer, also of a large network.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with every axis.")] = False,
) -> None:
    """Show the axes of a network, what each controls, and what cannot be pruned and why."""
    from paretoprune.pipeline.survey import survey

    model, given = _network(network, shape, dtype, example)
    flags: Flags = ctx.obj
    found = survey(model, given, time_on=target if time else None)
    if as_json:
        show.json_text(found.to_json())
        return
    from paretoprune.cli.inspect_tables import tables

    show.rich_text(*tables(found, everything=everything))
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


def _sizes(text: str, option: str = "--shape", like: str = "3,32,32") -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text!r}: give whole numbers with commas, e.g. {like}") from None


def measure(
    model: Annotated[Path, typer.Argument(help="An exported file.")],
    against: Annotated[Path | None, typer.Option(help="Another one, timed in turns with it.")] = None,
    target: Target = "onnxruntime",
    batches: Annotated[
        str | None, typer.Option(help="Also throughput, tails and the cold start, e.g. for batches 1,8,32.")
    ] = None,
    meter: Annotated[str | None, typer.Option(help="Your own energy meter, as module:Class.")] = None,
    tokens: Annotated[
        str | None, typer.Option(help="A language model's time to first token and per token: prompt,new e.g. 128,32.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Measure a file on the runtime that it was exported for: one sample at a time, one thread."""
    from paretoprune.pipeline import problem
    from paretoprune.pipeline.runtime import measure as measured

    problem.make_importable(Path.cwd())
    own = None if meter is None else problem.refer("--meter", meter)
    sizes = None if batches is None else _sizes(batches, "--batches", "1,8,32")
    counts: Any = None if tokens is None else _sizes(tokens, "--tokens", "128,32")
    taken = measured(model, target=target, against=against, batches=sizes, meter=own, tokens=counts)
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
