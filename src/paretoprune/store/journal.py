"""An append-only journal of JSON records that survives kill -9, a full disk and damaged lines."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretoprune.core.errors import FileError, StoreError
from paretoprune.store import lines
from paretoprune.store.files import atomic, storage_error, storing, sync
from paretoprune.store.lines import Entry, LineError


@dataclass(frozen=True)
class Damage:
    """A line that could not be kept: its number in the file (from 1), why, and what it held."""

    line: int
    reason: str
    text: str

    def dumps(self) -> str:
        return json.dumps({"line": self.line, "reason": self.reason, "text": self.text})


@dataclass(frozen=True)
class Scan:
    """What a journal file holds. `good` are the raw lines of `entries`; `clean` if that is all there is."""

    entries: tuple[Entry, ...]
    good: tuple[bytes, ...]
    damaged: tuple[Damage, ...]
    clean: bool


def scan(path: Path) -> Scan:
    """Read all of a journal. Raises FileError if it cannot be read or has a newer schema."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}; give the folder of a run") from error
    entries: list[Entry] = []
    good: list[bytes] = []
    damaged: list[Damage] = []
    raw = content.split(b"\n")
    for number, line in enumerate(raw, start=1):
        last = number == len(raw)
        if last and not line:
            break
        try:
            entry = lines.decode(line, path)
            if entries and entry.seq <= entries[-1].seq:
                raise LineError(f"sequence number {entry.seq} comes after {entries[-1].seq}")
        except LineError as error:
            if not last:  # without its newline it is a torn write, which nobody was told had succeeded
                damaged.append(Damage(number, str(error), line.decode("utf-8", "backslashreplace")))
            continue
        entries.append(entry)
        good.append(line + b"\n")
    return Scan(tuple(entries), tuple(good), tuple(damaged), b"".join(good) == content)


def quarantine_path(path: Path) -> Path:
    return path.with_name("journal.quarantine")


def _in_quarantine(path: Path) -> list[str]:
    kept = quarantine_path(path)
    try:
        return kept.read_text("utf-8", "backslashreplace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileError(f"cannot read {kept}: {error.strerror}; check its permissions") from error


def _repair(path: Path, found: Scan) -> int:
    """Leave only good lines in the journal; damaged ones move to the quarantine first. Returns how many lie there."""
    quarantined = _in_quarantine(path)
    # A crash between the two writes shows the same lines again: they are not counted twice.
    new = [text for text in (damage.dumps() for damage in found.damaged) if text not in quarantined]
    if new:
        with atomic(quarantine_path(path)) as temp:
            temp.write_text("".join(f"{text}\n" for text in quarantined + new), "utf-8")
    if not found.clean:
        with atomic(path) as temp:
            temp.write_bytes(b"".join(found.good))
    return len(quarantined) + len(new)


class Journal:
    """Records in order. `open` for writing (one process at a time, see the lock of the run), `read` for looking."""

    def __init__(self, path: Path, entries: tuple[Entry, ...], quarantined: int, handle: int | None) -> None:
        self.path = path
        self.quarantined = quarantined
        """Lines that were damaged and are kept aside in `journal.quarantine`."""
        self._entries = list(entries)
        self._handle = handle
        self._size = 0 if handle is None else os.fstat(handle).st_size
        self._mutex = threading.Lock()

    @classmethod
    def open(cls, path: str | Path) -> Journal:
        """Open for appending; create it, cut off a torn last line and quarantine damaged ones first.

        Raises StoreError if it cannot be written, FileError if it has a newer schema or is a link.
        """
        path = Path(path)
        if path.is_symlink():
            raise FileError(f"{path} is a link; replace it by the file that it points to")
        with storing(path):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
            sync(path.parent)
        found = scan(path)
        quarantined = _repair(path, found)
        with storing(path):
            handle = os.open(path, os.O_WRONLY | os.O_APPEND)
        return cls(path, found.entries, quarantined, handle)

    @classmethod
    def read(cls, path: str | Path) -> Journal:
        """Look at a journal that may be in use; nothing is changed. Raises FileError."""
        path = Path(path)
        found = scan(path)
        known = _in_quarantine(path)
        new = [damage for damage in found.damaged if damage.dumps() not in known]
        return cls(path, found.entries, len(known) + len(new), None)

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    @property
    def missing(self) -> int:
        """Sequence numbers that no record has: quarantined, or deleted from the middle of the file."""
        return self._last_seq - len(self._entries)

    @property
    def _last_seq(self) -> int:
        return self._entries[-1].seq if self._entries else 0

    def append(self, record: Mapping[str, Any]) -> Entry:
        """Write one record and bring it to the disk. On failure the file ends as it did before; raises StoreError."""
        with self._mutex:
            handle = self._usable()
            entry, line = lines.encode(self._last_seq + 1, lines.plain(record, "a record"))
            written = False
            try:
                _write_all(handle, line)
                os.fsync(handle)
                self._size += len(line)
                self._entries.append(entry)
                written = True
            except OSError as error:
                raise storage_error(self.path, error) from error
            finally:
                if not written:  # also after Ctrl-C
                    self._roll_back(handle)
            return entry

    def _usable(self) -> int:
        if self._handle is None:
            raise StoreError(f"{self.path} is closed or open for reading only; open it for writing")
        status = os.fstat(self._handle)
        if status.st_nlink == 0:
            raise StoreError(f"{self.path} was deleted while in use; start again with another folder")
        if status.st_size != self._size:
            raise StoreError(f"{self.path} was changed by another process while in use; stop one of them and run again")
        return self._handle

    def _roll_back(self, handle: int) -> None:
        try:
            os.ftruncate(handle, self._size)
        except OSError:
            # The torn line stays; the next `open` cuts it off.
            self.close()

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
