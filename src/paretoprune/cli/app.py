"""The commands and what all of them share: `--debug`, `--quiet`, `--version`, exit statuses."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import paretoprune
from paretoprune.cli import networks, runs, searching
from paretoprune.cli.guard import Flags, complain, one_line_errors

EVERYWHERE = ("--debug", "--quiet", "-q")
"""Options of the program that may also stand behind the command."""

_UsageError: Any = typer.BadParameter.__bases__[0]
"""The parser's own base class; its module has moved between versions of typer."""


class Group(TyperGroup):
    """Usage errors in one line, and the program's own options anywhere."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words, rest = (args[: args.index("--")], args[args.index("--") :]) if "--" in args else (args, [])
        front = [word for word in words if word in EVERYWHERE]
        return super().parse_args(ctx, [*front, *(word for word in words if word not in EVERYWHERE), *rest])

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            status = super().main(*args, **{**extra, "standalone_mode": False})
        except _UsageError as error:
            where = f" (see '{error.ctx.command_path} --help')" if error.ctx is not None else ""
            complain(f"{error.format_message()}{where}")
            sys.exit(2)
        sys.exit(status if isinstance(status, int) else 0)


class Command(TyperCommand):
    """A command whose errors are one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        flags: Flags = ctx.obj
        with one_line_errors(flags.debug):
            return super().invoke(ctx)


app = typer.Typer(cls=Group, rich_markup_mode=None, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"paretoprune {paretoprune.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def program(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the warnings of libraries.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes, only the result.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """From a trained network to a measured Pareto front of smaller, faster ones.

    Exit statuses: 0 done, 1 failed, 2 wrong use or input, 3 limits that nothing can meet, 4 the run folder cannot be
    used, 5 every candidate failed, 130 Ctrl-C.
    """
    ctx.obj = Flags(debug, quiet)
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


for _command in (
    searching.demo,
    networks.inspect,
    searching.run,
    runs.front,
    runs.report,
    runs.export,
    networks.measure,
):
    app.command(cls=Command)(_command)


def main() -> None:
    """The console script."""
    app()
