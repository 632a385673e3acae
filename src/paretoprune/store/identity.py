"""What a run was made for: model, data and recipe. Compared key by key when a run is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_ABSENT = "absent"
_SHOWN = 8
_LONGEST = 60


def fingerprint(identity: Mapping[str, Any]) -> str:
    """A short hash that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def flat(identity: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"model.name": text, …}; values as JSON, so that control characters are escaped."""
    found: dict[str, str] = {}
    for key, value in identity.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = json.dumps(value, sort_keys=True)
    return found


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def difference(stored: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """One clause for each key that differs, sorted; empty if none does."""
    there, here = flat(stored), flat(given)
    names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    clauses = [
        f"{json.dumps(name)[1:-1]} was {_short(there.get(name, _ABSENT))}, is {_short(here.get(name, _ABSENT))}"
        for name in names[:_SHOWN]
    ]
    if len(names) > _SHOWN:
        clauses.append(f"and {len(names) - _SHOWN} more")
    return "; ".join(clauses)
