"""A part by name: from a literal table, as the object itself, or from outside the tree as "pkg.mod:attribute"."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from paretoprune.core.errors import UsageError


def look_up(kind: str, given: Any, table: Mapping[str, Any]) -> Any:
    """The entry of `table` called `given`, the attribute that "pkg.mod:attribute" names, or `given` itself.

    `kind` ("criterion", "task") is for the message. Raises UsageError for a name that is in neither place.
    """
    if not isinstance(given, str):
        return given
    if given in table:
        return table[given]
    if ":" in given:
        return load_reference(kind, given)
    near = difflib.get_close_matches(given, table, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(
        f"unknown {kind} {given!r}: there are {', '.join(sorted(table))}, or give 'pkg.mod:attribute'{hint}"
    )


def load_reference(kind: str, reference: str) -> Any:
    """What "pkg.mod:attribute" points at. Imports the module, so give it only references that the user wrote."""
    module_name, _, attribute = reference.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{kind} {reference!r}: cannot import {module_name!r} ({error})") from error
    except AttributeError as error:
        raise UsageError(f"{kind} {reference!r}: {module_name!r} has no attribute {attribute!r}") from error
    return found
