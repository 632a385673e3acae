"""What was measured on this machine before, kept between runs. It is a convenience: without it all is measured again.

The folder is $PARETOPRUNE_CACHE ("off" for none), else $XDG_CACHE_HOME/paretoprune, else ~/.cache/paretoprune. A file
that is damaged, of another version, or of another machine is not read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from paretoprune.core.errors import FileError
from paretoprune.core.storage import cache_folder
from paretoprune.targets.files import new_file

SCHEMA = 1
MAX_BYTES = 16 << 20
WAIT_S = 5.0
"""For another process that is writing; after that this run's figures are not kept."""


def read(name: str) -> Any:
    """What was written under `name`; None if there is nothing that can be trusted."""
    folder = cache_folder()
    return None if folder is None else _read(folder / f"{name}.json")


def write(name: str, payload: Any) -> None:
    """Keep `payload`, which JSON can hold. A folder that cannot be written to is left alone."""
    folder = cache_folder()
    if folder is None:
        return
    with contextlib.suppress(OSError, FileError, Timeout):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock", timeout=WAIT_S), new_file(folder / f"{name}.json") as file:
            file.write_text(json.dumps({"schema": SCHEMA, "sha256": _digest(payload), "payload": payload}), "utf-8")


def _read(file: Path) -> Any:
    try:
        if file.stat().st_size > MAX_BYTES:
            return None
        entry = json.loads(file.read_text("utf-8"))
        sound = entry["schema"] == SCHEMA and entry["sha256"] == _digest(entry["payload"])
        return entry["payload"] if sound else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _digest(payload: Any) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
