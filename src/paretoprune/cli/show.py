"""Results on standard output: tables for people, JSON and CSV for machines."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from paretoprune.core.front import Front

WIDTH = 100
"""Columns where the output is no terminal."""


def json_text(value: Any) -> None:
    """ASCII only, so no name can hold a command for the terminal."""
    typer.echo(json.dumps(value, indent=1, allow_nan=False))


def csv_text(text: str) -> None:
    """As it is into a file or pipe; to a terminal with control characters spelled out."""
    from paretoprune.report.text import clean_lines

    typer.echo(clean_lines(text, 10_000_000) if sys.stdout.isatty() else text, nl=False)


def rich_text(*parts: RenderableType) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False, soft_wrap=False)
    for part in parts:
        console.print(part)


def line(text: str) -> None:
    """A line of words and paths on standard output."""
    from paretoprune.report.text import clean

    typer.echo(clean(text, 4000))


def lines(text: str) -> None:
    """Several lines of text on standard output."""
    from paretoprune.report.text import clean_lines

    typer.echo(clean_lines(text, 1_000_000))


def front_table(front: Front, chosen: str, reason: str, everything: bool = False) -> None:
    """The front; with `everything`, the figures of quality and of energy in tables of their own."""
    from paretoprune.report import terminal

    more = [terminal.quality_table(front, chosen), terminal.energy_table(front, chosen)] if everything else []
    rich_text(terminal.front_table(front, chosen), *more, terminal.summary(front, chosen))
    if reason:
        line(reason)
