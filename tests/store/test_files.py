"""Whole files or none, and names that stay inside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paretoprune.core.errors import FileError, StoreError
from paretoprune.store.files import TEMP_PREFIX, atomic, inside, sweep


def test_a_file_appears_whole_with_the_suffix_kept(tmp_path: Path) -> None:
    with atomic(tmp_path / "deep" / "a.npz") as temp:
        assert temp.suffix == ".npz"
        temp.write_text("new")
        assert not (tmp_path / "deep" / "a.npz").exists()
    assert (tmp_path / "deep" / "a.npz").read_text() == "new"
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def half() -> None:
        with atomic(path) as temp:
            temp.write_text("ne")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        half()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing was written"), atomic(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_on_another_file_is_passed_on_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic(tmp_path / "a"):
        (tmp_path / "elsewhere").read_text()


def test_a_parent_that_is_a_file_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(StoreError, match="cannot write"), atomic(tmp_path / "a" / "b"):
        pass


def test_sweeping_removes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = tmp_path / "members" / f"{TEMP_PREFIX}{int(child.stdout)}-00.onnx"
    alive = tmp_path / f"{TEMP_PREFIX}{os.getpid()}-00.onnx"
    other = tmp_path / f"{TEMP_PREFIX}notes"
    dead.parent.mkdir()
    for file in (dead, alive, other):
        file.write_text("x")
    sweep(tmp_path)
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()


@pytest.mark.parametrize("name", ["a", "a.onnx", "members/a.onnx", "./a", "..a", "a..b", "ä b"])
def test_names_inside(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/../b", "a/../../b", "/etc/passwd", "C:\\a", "C:a", "a\\..\\b", "a\0b", "a\nb"]
)
def test_names_that_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError):
        inside(tmp_path, name)


def test_links_inside_are_followed_and_links_out_refused(tmp_path: Path) -> None:
    root = tmp_path / "run"
    (root / "real").mkdir(parents=True)
    (root / "to_real").symlink_to(root / "real")
    (root / "to_out").symlink_to(tmp_path)
    (root / "dangling").symlink_to(tmp_path / "not there")
    assert inside(root, "to_real/a") == root / "to_real" / "a"
    for name in ("to_out/a", "to_out", "dangling"):
        with pytest.raises(FileError, match="leads out"):
            inside(root, name)
