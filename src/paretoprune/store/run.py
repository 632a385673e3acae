"""The run folder: what a search has finished, kept so that a second run goes on where the first one stopped.

`RunFolder.open` writes, under a lock; `RunFolder.read` looks, at any time, also while a search is running.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from paretoprune.core.errors import FileError, StoreError, UsageError
from paretoprune.store import files, identity
from paretoprune.store.journal import Journal, quarantine_path
from paretoprune.store.lines import Entry, plain
from paretoprune.store.lock import HOLDER, LOCK, RunLock

JOURNAL = "journal.jsonl"
_IDENTITY = "_identity"
_SEAL = "_seal"
_OWN = {JOURNAL, quarantine_path(Path(JOURNAL)).name, LOCK, HOLDER}


class RunView:
    """What a run has recorded. Payloads are copies: changing one changes nothing that is stored."""

    def __init__(self, path: Path, journal: Journal) -> None:
        self.path = path
        self._journal = journal
        self._payloads: dict[str, dict[str, Any]] = {}
        self._fingerprint = ""
        for entry in journal.entries:
            self._index(entry)

    def _index(self, entry: Entry) -> None:
        record = entry.record
        kind, key, run = record.get("kind"), record.get("key"), record.get("run")
        if not (isinstance(kind, str) and isinstance(key, str) and isinstance(run, str) and "payload" in record):
            raise FileError(f"{self._journal.path}: record {entry.seq} is not of a run; use another folder")
        if self._fingerprint and run != self._fingerprint:
            raise FileError(f"{self._journal.path}: record {entry.seq} is of another search; use another folder")
        self._fingerprint = run
        self._payloads.setdefault(kind, {})[key] = record["payload"]

    @property
    def identity(self) -> dict[str, Any] | None:
        """What the run was made for; None if that line was damaged."""
        found = self.done(_IDENTITY, "")
        return found if isinstance(found, dict) else None

    @property
    def quarantined(self) -> int:
        """Damaged lines of the journal that are kept aside in `journal.quarantine`."""
        return self._journal.quarantined

    @property
    def missing(self) -> int:
        """Records that vanished from the middle of the journal, the quarantined ones among them."""
        return self._journal.missing

    def has(self, kind: str, key: str) -> bool:
        return key in self._payloads.get(kind, {})

    def done(self, kind: str, key: str) -> Any | None:
        """The recorded payload, or None. Where None may be a payload, ask `has`."""
        return copy.deepcopy(self._payloads.get(kind, {}).get(key))

    def all(self, kind: str) -> dict[str, Any]:
        """{key: payload} in the order of recording."""
        return copy.deepcopy(self._payloads.get(kind, {}))

    def artefact(self, name: str) -> Path:
        """The path of a file of this run, for instance "members/a.onnx". Raises FileError for one that leads out."""
        path = files.inside(self.path, name)
        if self._name(path) in _OWN:
            raise FileError(f"{name!r} belongs to the journal of {self.path}; choose another name")
        return path

    def _name(self, artefact: Path) -> str:
        return artefact.relative_to(self.path).as_posix()

    def verify(self, name: str) -> Path:
        """The path of a sealed artefact that is as it was sealed. Raises FileError if truncated or altered."""
        path = self.artefact(name)
        seal = self.done(_SEAL, self._name(path))
        if not isinstance(seal, dict):
            raise FileError(f"{path} was never finished (no checksum is recorded); run again to make it")
        sha256, size = files.digest(path)
        if size != seal["bytes"]:
            raise FileError(f"{path} has {size} bytes instead of {seal['bytes']}; delete it and run again to make it")
        if sha256 != seal["sha256"]:
            raise FileError(f"{path} was altered (its SHA-256 does not match); delete it and run again to make it")
        return path


class RunFolder(RunView):
    """A run folder that is held for writing; close it, or use it in a `with`."""

    def __init__(self, path: Path, journal: Journal, lock: RunLock) -> None:
        super().__init__(path, journal)
        self._lock = lock

    @classmethod
    def open(cls, path: str | Path, identity: Mapping[str, Any], *, create: bool = True) -> RunFolder:
        """Lock the folder, repair its journal and check that it is of this `identity` (a plain dict, may be nested).

        Raises StoreError if it is read-only, in use, or of another search; FileError if there is none and not `create`.
        """
        path = Path(path).absolute()
        given = plain(identity, "the identity of the run")
        if create:
            with files.storing(path):
                path.mkdir(parents=True, exist_ok=True)
        elif not (path / JOURNAL).is_file():
            raise _no_run(path)
        with ExitStack() as undo:
            lock = RunLock(path)
            undo.callback(lock.release)
            journal = Journal.open(path / JOURNAL)
            undo.callback(journal.close)
            folder = cls(path, journal, lock)
            folder._claim(given)
            files.sweep(path)
            undo.pop_all()
        return folder

    @staticmethod
    def refuse_unusable(path: str | Path) -> None:
        """Raise early, before any work, the StoreError of a folder that is read-only or in use. Makes nothing."""
        path = Path(path).absolute()
        if path.is_dir():
            RunLock(path).release()
        existing = next(p for p in (path, *path.parents) if p.exists())
        with files.storing(path), tempfile.TemporaryFile(dir=existing):
            pass

    @staticmethod
    def read(path: str | Path) -> RunView:
        """Look at a run without the lock, also while it is being written. Raises FileError if there is none."""
        path = Path(path).absolute()
        if not (path / JOURNAL).is_file():
            raise _no_run(path)
        return RunView(path, Journal.read(path / JOURNAL))

    def _claim(self, given: dict[str, Any]) -> None:
        stored = self.identity
        mine = identity.fingerprint(given)
        if self._fingerprint not in ("", mine):
            changed = "its first line is damaged" if stored is None else identity.difference(stored, given)
            raise StoreError(
                f"{self.path} holds another search: {changed}; use another folder, or give what it was started with"
            )
        self._fingerprint = mine
        if stored is None:
            self._append(_IDENTITY, "", given)

    def _append(self, kind: str, key: str, payload: Any) -> Any:
        payload = plain(payload, f"{kind} {key!r}")
        record = {"run": self._fingerprint, "kind": kind, "key": key, "payload": payload}
        self._index(self._journal.append(record))
        return self.done(kind, key)

    def record(self, kind: str, key: str, payload: Any, *, replace: bool = False) -> Any:
        """Store a payload (numbers, text, lists, dicts) for good and return it as it will be read back.

        Raises StoreError if it cannot be written, UsageError if `key` has one already and not `replace`.
        """
        if kind.startswith("_"):
            raise UsageError(f"records of kind {kind!r} are the store's own; choose a name without a leading '_'")
        if self.has(kind, key) and not replace:
            raise UsageError(f"{kind} {key!r} is recorded already in {self.path}; give another key, or replace=True")
        return self._append(kind, key, payload)

    def once(self, kind: str, key: str, fn: Callable[[], Any]) -> Any:
        """The recorded payload; where there is none, that of `fn()`, recorded. The same value either way."""
        return self.done(kind, key) if self.has(kind, key) else self.record(kind, key, fn())

    def seal(self, *names: str) -> None:
        """Record SHA-256 and size of finished artefacts, once they are on the disk."""
        for name in names:
            path = self.artefact(name)
            sha256, size = files.digest(path)
            with files.storing(path):
                files.sync(path)
            self._append(_SEAL, self._name(path), {"sha256": sha256, "bytes": size})

    def close(self) -> None:
        self._journal.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _no_run(path: Path) -> FileError:
    return FileError(f"there is no run in {path} ({JOURNAL} is missing); give the folder of a run, or start one")
