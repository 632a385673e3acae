"""`demo` and `run`: the searches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paretoprune.cli import show
from paretoprune.cli.guard import INTERRUPTED, Flags, complain, second_interrupt_leaves
from paretoprune.core.errors import AllCandidatesFailedError, FileError, UnreachableLimitError

if TYPE_CHECKING:
    from paretoprune.core.progress import Progress


def demo(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    budget: Annotated[
        str | None, typer.Option(help="Wall time for the search, such as '140 s' or '5 min'.", show_default="140 s")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """The main job on the handwritten digits of scikit-learn: train, search, measure, report.

    May be called again: it goes on where it stopped.
    """

    def work(progress: Progress) -> None:
        from paretoprune.pipeline import demo as digits

        digits.run(out, digits.BUDGET if budget is None else budget, progress)

    _search(ctx.obj, out, work, as_json)


def run(
    ctx: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file; examples/recipe.toml shows every key.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a key: --set limits.latency='<= 5 ms'. Repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Search as a recipe says. A second run in the same folder resumes.

    The functions that the recipe names are imported, from the folder of the recipe first, and called: read a recipe
    as you would read a script before you run somebody else's.
    """
    from paretoprune.pipeline.recipe import read_recipe

    read = read_recipe(recipe, overrides or ())
    folder = read.folder

    def work(progress: Progress) -> None:
        from paretoprune.pipeline import problem

        problem.run(read, progress)

    _search(ctx.obj, folder, work, as_json)


def _search(flags: Flags, folder: Path, work: Callable[[Progress], None], as_json: bool) -> None:
    """Do the work, then show the front and write the page; also after Ctrl-C, and where limits cannot be met."""
    with second_interrupt_leaves() as interrupts:
        _say_if_resumed(flags, folder)
        try:
            with _progress(flags) as progress:
                work(progress)
        except KeyboardInterrupt:
            interrupts.taken()
            _stopped(flags, folder, as_json)
            raise typer.Exit(INTERRUPTED) from None
        except (UnreachableLimitError, AllCandidatesFailedError):
            _finish(flags, folder, as_json)
            raise
        _finish(flags, folder, as_json)


@contextmanager
def _progress(flags: Flags) -> Iterator[Progress]:
    from paretoprune.core.progress import NoProgress
    from paretoprune.report.progress import progress

    if flags.quiet:
        yield NoProgress()
        return
    with progress() as bars:
        yield bars


def _say_if_resumed(flags: Flags, folder: Path) -> None:
    from paretoprune.store.run import RunFolder

    try:
        view = RunFolder.read(folder)
    except FileError:
        return
    flags.note(f"resuming {folder}: {len(view.all('candidate'))} exported files are measured already")


def _stopped(flags: Flags, folder: Path, as_json: bool) -> None:
    complain(f"stopped by Ctrl-C; what was finished is kept in {folder}, and the same command goes on from there")
    try:
        _finish(flags, folder, as_json)
    except FileError as error:
        flags.note(str(error))


def _finish(flags: Flags, folder: Path, as_json: bool) -> None:
    """The front as it is now, the page, and what to know about them."""
    from paretoprune.pipeline import reporting
    from paretoprune.pipeline.results import front_of
    from paretoprune.store.run import RunFolder

    view = RunFolder.read(folder)
    front = front_of(view)
    chosen, reason = reporting.recommend(front)
    name = "" if chosen is None else chosen.name
    page = reporting.write(folder)
    for note in reporting.notes(view, front):
        flags.note(f"note: {note}")
    for cause, count in reporting.failures(view):
        flags.note(f"note: {count} failed: {cause}")
    if as_json:
        found = {"folder": str(view.path), "report": str(page), "chosen": name or None, "members": front.to_rows()}
        show.json_text(found)
        return
    show.front_table(front, name, reason)
    show.line(f"report: {page}")
