"""The program itself: light, one-line errors, options anywhere, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import paretoprune
from paretoprune.pipeline import results

SRC = Path(__file__).parents[2] / "src"
HEAVY = {"torch", "numpy", "scipy", "sklearn", "onnx", "onnxruntime", "optuna", "plotly", "rich", "jinja2"}
COMMANDS = ("demo", "inspect", "run", "front", "report", "export", "measure")
Invoke = Callable[..., Any]


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"], ["frunt"]])
def test_help_and_usage_import_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys, atexit\n"
        f"sys.argv = ['paretoprune', *{words!r}]\n"
        "atexit.register(lambda: print('loaded', *{m.partition('.')[0] for m in sys.modules}))\n"
        "from paretoprune.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=False,
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "typer" in loaded
    # The message of an error is cleaned by the report room, which brings numpy.
    assert loaded & HEAVY <= ({"numpy"} if words == ["frunt"] else set())


def test_help_names_every_command_and_the_exit_statuses(invoke: Invoke) -> None:
    shown = invoke("--help")
    assert shown.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in shown.stdout
        assert invoke(name, "--help").exit_code == 0
    assert "130" in shown.stdout
    assert invoke().stdout == shown.stdout


def test_version(invoke: Invoke) -> None:
    assert invoke("--version").stdout == f"paretoprune {paretoprune.__version__}\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["frunt"], "No such command 'frunt'"),
        (["front"], "Missing argument"),
        (["front", "x", "--jsn"], "No such option"),
        (["export", "x", "--to", "tflite"], "'tflite' is not one of"),
        (["front", "x", "--json", "--csv"], "not both"),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(invoke: Invoke, words: list[str], says: str) -> None:
    found = invoke(*words)
    assert found.exit_code == 2
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith("error: ")
    assert says in found.stderr
    assert "--help" in found.stderr


@pytest.mark.parametrize("words", [["--debug", "front", "nowhere"], ["front", "nowhere", "--debug"]])
def test_debug_may_stand_anywhere_and_shows_the_traceback(invoke: Invoke, words: list[str]) -> None:
    found = invoke(*words)
    assert found.exit_code == 2
    assert "Traceback" in found.stderr
    assert found.stderr.splitlines()[-1].startswith("error: there is no run in ")
    assert "Traceback" not in invoke("front", "nowhere").stderr


def test_a_fault_of_ours_is_one_line_too(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(results, "read_front", fails)
    found = invoke("front", "x")
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr == "error: unexpected ZeroDivisionError: by zero; --debug shows where\n"


def test_the_shell_completes_commands() -> None:
    asked = {"_PARETOPRUNE_COMPLETE": "complete_bash", "COMP_WORDS": "paretoprune me", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'paretoprune'; from paretoprune.cli import main; main()"],
        env={**os.environ, "PYTHONPATH": str(SRC), **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["measure"], done.stderr
