"""A workspace with a recipe of a tiny network, the program as users call it, and one finished run for all tests."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paretoprune.cli import app

TINY = Path(__file__).parent / "tiny"
SRC = Path(__file__).parents[2] / "src"
Invoke = Callable[..., Any]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, shared_cache: str) -> Path:
    """The run folder of one complete run by a real process."""
    folder = tmp_path_factory.mktemp("finished") / "work"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "paretoprune", "run", "recipe.toml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SRC), "PARETOPRUNE_CACHE": shared_cache},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout, "utf-8")
    (folder / "stderr").write_text(done.stderr, "utf-8")
    return folder / "runs" / "recipe"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A fresh folder with the recipe and its module."""
    return Path(shutil.copytree(TINY, tmp_path / "work", ignore=shutil.ignore_patterns("__pycache__")))


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, shared_cache: str) -> Iterator[Invoke]:
    """Call the program inside this process; nothing that it changes for itself outlives the test."""
    monkeypatch.setenv("PARETOPRUNE_CACHE", shared_cache)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "tiny_net", raising=False)

    def call(*args: str | Path) -> Any:
        return CliRunner().invoke(app, [str(arg) for arg in args])

    yield call
    sys.modules.pop("tiny_net", None)
    logging.disable(logging.NOTSET)
