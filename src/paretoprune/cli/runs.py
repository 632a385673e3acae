"""`front`, `report` and `export`: what a run folder holds, also after a crash and while a search is going on."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from paretoprune.cli import show
from paretoprune.core.errors import UsageError

Run = Annotated[Path, typer.Argument(help="The run folder.")]


class Form(StrEnum):
    """file: what was measured. onnx: that, if it is ONNX. torch: a folder for `paretoprune.load`."""

    file = "file"
    onnx = "onnx"
    torch = "torch"


def front(
    run: Run,
    as_json: Annotated[bool, typer.Option("--json", help="Every measured candidate as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="The same as CSV.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Also F1, loss, calibration …, power, frame rate.")] = False,
    why: Annotated[
        str | None, typer.Option(help="Explain this candidate; with --json as JSON.", metavar="NAME")
    ] = None,
) -> None:
    """Show every measured candidate and the front among them."""
    if as_csv and (as_json or why is not None):
        raise typer.BadParameter("give --json or --csv, not both" if as_json else "--why is not given as CSV")
    from paretoprune.pipeline.reporting import recommend
    from paretoprune.pipeline.results import read_front

    found = read_front(run)
    if why is not None:
        told = found.explain(why)
        if as_json:
            show.json_text(told.to_json())
        else:
            show.lines(str(told))
    elif as_json:
        show.json_text({"members": found.to_rows()})
    elif as_csv:
        show.csv_text(found.to_csv())
    else:
        chosen, reason = recommend(found)
        show.front_table(found, "" if chosen is None else chosen.name, reason, everything)


def report(
    run: Run, out: Annotated[Path | None, typer.Option(help="The page.", show_default="RUN/report.html")] = None
) -> None:
    """Write the report again, one HTML page that works offline."""
    from paretoprune.pipeline.reporting import write

    show.line(f"report: {write(run, out)}")


def export(
    ctx: typer.Context,
    run: Run,
    pick: Annotated[str, typer.Option(help="knee, fastest, smallest, or the name of a candidate.")] = "knee",
    to: Annotated[
        Form, typer.Option(help="file: what was measured; onnx: that, if it is ONNX; torch: for paretoprune.load.")
    ] = Form.file,
    out: Annotated[Path | None, typer.Option(help="Where to.", show_default="its name, in this folder")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Copy one member out of a run, after its checksum was compared."""
    from paretoprune.pipeline import take_out

    found = take_out.picked(run, pick)
    if not found.meets_limits:
        ctx.obj.note(f"note: {found.name} does not meet the limits of this run")
    if to is Form.onnx and found.path.suffix != ".onnx":
        raise UsageError(f"{found.name} was measured as a {found.path.suffix} file: take it --to file")
    copy = take_out.copy_torch if to is Form.torch else take_out.copy_file
    show.line(str(copy(run, found, out, force)))
