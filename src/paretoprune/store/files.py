"""Files that are whole or absent, names that stay inside a folder, and storage failures in one sentence."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from paretoprune.core.errors import FileError
from paretoprune.core.storage import TEMP_PREFIX, atomic, storage_error, storing, sync

__all__ = ["TEMP_PREFIX", "atomic", "digest", "inside", "storage_error", "storing", "sweep", "sync"]


def sweep(root: Path) -> None:
    """Remove temporary files under `root` whose writers are dead."""
    import psutil

    for temp in root.rglob(f"{TEMP_PREFIX}*"):
        pid = temp.name.removeprefix(TEMP_PREFIX).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            with storing(temp):
                temp.unlink(missing_ok=True)


def inside(root: Path, name: str) -> Path:
    """`root / name` for a relative name that stays under `root`, links followed. Raises FileError."""
    pure = PurePosixPath(name)
    if not pure.parts or not name.isprintable() or "\\" in name:
        raise FileError(f"{name!r} is not the name of a file in {root}; give a relative path such as 'members/a.onnx'")
    if pure.is_absolute() or PureWindowsPath(name).drive or ".." in pure.parts:
        raise FileError(f"{name!r} points outside {root}; give a relative path without '..'")
    path = root / pure
    if not path.resolve().is_relative_to(root.resolve()):
        raise FileError(f"{name!r} is a link that leads out of {root}; replace it by a file")
    return path


def digest(path: Path) -> tuple[str, int]:
    """SHA-256 (hex) and size in bytes of one reading of `path`. Raises FileError if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}; it may have been moved or deleted") from error
