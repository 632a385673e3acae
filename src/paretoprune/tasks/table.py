"""The tasks by name."""

from __future__ import annotations

from collections.abc import Mapping

from paretoprune.core.errors import UsageError
from paretoprune.core.plugin import look_up
from paretoprune.core.protocols import Task
from paretoprune.tasks.classification import CLASSIFICATION

TASKS: Mapping[str, Task] = {
    "classification": CLASSIFICATION,
}


def task_of(given: str | Task) -> Task:
    """A task by name, the object itself, or "pkg.mod:attribute". Raises UsageError."""
    found = look_up("task", given, TASKS)
    if not isinstance(found, Task):
        raise UsageError(
            f"task {given!r} is a {type(found).__name__}; expected a paretoprune Task(name, loss, correct)"
        )
    return found
