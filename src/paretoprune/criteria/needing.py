"""What a criterion asked for and did not get."""

from __future__ import annotations

from typing import TypeVar

from paretoprune.core.errors import UsageError

T = TypeVar("T")


def needed(value: T | None, criterion: str, what: str) -> T:
    """`value`; raises UsageError where the view was made without it."""
    if value is None:
        raise UsageError(f"criterion {criterion!r} needs {what}: name it in `needs`, or give the view {what}")
    return value
