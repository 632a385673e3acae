"""One line of the journal: a checksum, a space, and a JSON object with a schema and a sequence number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from paretoprune.core.errors import FileError, UsageError

SCHEMA = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From schema n to n + 1: `MIGRATIONS[n](line)`. Schema 1 is the first."""

_CHECKSUM_LENGTH = 16


@dataclass(frozen=True)
class Entry:
    """A record with its place in the journal. `at` is the wall clock, a label only."""

    seq: int
    at: str
    record: Mapping[str, Any]


class LineError(ValueError):
    """A line that was not written by us, or was altered since."""


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_CHECKSUM_LENGTH].encode()


def plain(value: Any, what: str) -> Any:
    """`value` as it comes back from the journal: tuples become lists, keys strings. Raises UsageError."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot store {what}: {error}; give numbers, text, lists and dicts only") from error


def encode(seq: int, record: Mapping[str, Any]) -> tuple[Entry, bytes]:
    entry = Entry(seq, datetime.now(UTC).isoformat(timespec="seconds"), record)
    body = {"schema": SCHEMA, "seq": entry.seq, "at": entry.at, "record": entry.record}
    text = json.dumps(body, separators=(",", ":")).encode("ascii")
    return entry, _checksum(text) + b" " + text + b"\n"


def decode(line: bytes, path: Path) -> Entry:
    """The entry of a line without its newline. Raises LineError for damage, FileError for a newer schema."""
    checksum, _, text = line.partition(b" ")
    if checksum != _checksum(text):
        raise LineError("the checksum does not match")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LineError(f"not JSON: {error}") from error
    if not isinstance(body, dict) or type(body.get("schema")) is not int:
        raise LineError("no schema")
    body = _migrate(body, path)
    seq, at, record = body.get("seq"), body.get("at"), body.get("record")
    if type(seq) is not int or not isinstance(at, str) or not isinstance(record, dict):
        raise LineError("not a record")
    return Entry(seq, at, record)


def _migrate(body: dict[str, Any], path: Path) -> dict[str, Any]:
    schema = body["schema"]
    if schema > SCHEMA:
        raise FileError(f"{path} has schema {schema}, this version reads up to {SCHEMA}: upgrade paretoprune")
    for step in range(schema, SCHEMA):
        if step not in MIGRATIONS:
            raise LineError(f"unknown schema {schema}")
        body = MIGRATIONS[step](body)
    return body
