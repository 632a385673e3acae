"""One live process for each run folder. The kernel drops the lock of a dead process, so none is ever stale."""

from __future__ import annotations

import json
import os
import platform
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from paretoprune.core.errors import StoreError
from paretoprune.store.files import atomic, storing

LOCK = "lock"
HOLDER = "lock.holder"
_GRACE_S = 1.0
"""A process that was just killed may need a moment to be gone."""


class RunLock:
    """A held lock. `lock.holder` names the process for the message that the next one gets."""

    def __init__(self, folder: Path) -> None:
        """Take the lock. Raises StoreError naming the holder, or if the folder cannot be written."""
        self._holder = folder / HOLDER
        self._lock = FileLock(folder / LOCK, thread_local=False)
        with storing(folder / LOCK):
            try:
                self._lock.acquire(timeout=_GRACE_S)
            except Timeout:
                raise StoreError(
                    f"{folder} is in use by {_describe(self._holder)}; wait for it, stop it, or use another folder"
                ) from None
        try:
            with atomic(self._holder) as temp:
                temp.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}), "utf-8")
        except StoreError:
            self._lock.release()
            raise

    def release(self) -> None:
        if self._lock.is_locked:
            with suppress(OSError):  # only a name for a message; a folder gone read-only must not stop the release
                self._holder.unlink()
            self._lock.release()


def _describe(holder: Path) -> str:
    try:
        stored = json.loads(holder.read_text("utf-8"))
        pid, host = int(stored["pid"]), str(stored["host"])
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
    return f"process {pid}" if host == platform.node() else f"process {pid} on {host!r}"
