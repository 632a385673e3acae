"""The public names, exactly; and that the front door costs nothing and always leads to the same room."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import paretoprune

ROOT = Path(__file__).parents[1]
NAMES = [
    "Candidate",
    "Data",
    "Evaluation",
    "Front",
    "Limits",
    "Measurement",
    "Plan",
    "Pruned",
    "Task",
    "Why",
    "apply",
    "auto_prune",
    "distill",
    "distill_nested",
    "errors",
    "evaluate",
    "export",
    "finetune",
    "hand_back",
    "load",
    "load_checkpoint",
    "measure",
    "pack",
    "prune",
    "prune_gradually",
    "quantize_aware",
    "read_front",
    "save",
    "search",
    "sparsify",
    "testing",
    "trace",
    "train_sparse",
]


def fresh(program: str) -> str:
    """What a program prints in a fresh interpreter where warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_the_public_names_are_these() -> None:
    assert sorted(paretoprune.__all__) == NAMES
    assert dir(paretoprune) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    found = getattr(paretoprune, name)
    assert found is getattr(paretoprune, name)
    assert found.__doc__, f"{name} has no docstring"


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'paretoprune' has no attribute 'prunes'"):
        _ = paretoprune.prunes
    assert not hasattr(paretoprune, "_HOME")


def test_every_error_of_ours_is_a_prune_error() -> None:
    errors = paretoprune.errors
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert len(found) > 10
    assert all(issubclass(e, errors.PruneError) and e.exit_status > 0 for e in found)


def test_the_front_door_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'onnx', 'onnxruntime', 'optuna', 'scipy', 'pandas', 'sklearn', 'pydantic'}"
    assert fresh(f"import sys, paretoprune; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_search_is_the_function_whatever_was_imported_before() -> None:
    """A room is called `search` too, and importing it binds that name in the package."""
    program = "import paretoprune as pp; pp.prune; import paretoprune.search.table; from paretoprune import search; "
    assert fresh(program + "print(pp.search is search, callable(search), search.__module__)") == (
        "True True paretoprune.pipeline.search"
    )
