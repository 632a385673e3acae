"""Files that are whole or absent, and storage failures in one sentence."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paretoprune.core.errors import StoreError

TEMP_PREFIX = ".tmp-"
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the limit on the size of a file is reached",
}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def storage_error(path: Path, error: OSError) -> StoreError:
    """What went wrong with `path`, and what to do, in one sentence."""
    if error.errno in _FULL:
        return StoreError(
            f"cannot write {path}: {_FULL[error.errno]}; free some space and run again, what was recorded is kept"
        )
    if error.errno in _DENIED:
        return StoreError(
            f"cannot write {path}: it is read-only for this user ({error.strerror}); "
            "choose another folder or change its permissions"
        )
    return StoreError(f"cannot write {path}: {error.strerror or error}; check the folder or choose another one")


def cache_folder() -> Path | None:
    """Of what is kept between runs, for convenience only; None where nothing is to be kept.

    $PARETOPRUNE_CACHE ("off" for none), else $XDG_CACHE_HOME/paretoprune, else ~/.cache/paretoprune.
    """
    given = os.environ.get("PARETOPRUNE_CACHE")
    if given is not None:
        return None if given in ("", "off") else Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "paretoprune"
    except RuntimeError:
        return None  # no home


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a StoreError about `path`."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder, with the same suffix; `path` appears only if the block succeeds.

    Raises StoreError when there is no room or no permission. Leaves nothing behind when the block fails.
    """
    path = Path(path)
    temp = path.with_name(f"{TEMP_PREFIX}{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            yield temp
        except OSError as error:
            # The block may read other files: only what concerns this one is ours to explain.
            if error.errno in _FULL or str(error.filename) == str(temp):
                raise storage_error(path, error) from error
            raise
        if not temp.is_file():
            raise StoreError(f"cannot write {path}: nothing was written to the temporary file {temp.name}")
        with storing(path):
            sync(temp)
            os.replace(temp, path)
            sync(path.parent)
    finally:
        temp.unlink(missing_ok=True)
