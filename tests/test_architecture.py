"""The house stands as drawn: one direction, a light front door, few dependencies, no doors left open."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ROOMS = (
    *("graph", "frameworks", "criteria", "quantize", "recover", "targets", "search"),
    *("sparsity", "tasks", "store", "report", "testing"),
)
HEAVY = ("torch", "numpy", "scipy", "sklearn", "onnx", "onnxruntime", "optuna", "pandas", "plotly", "PIL")
"""What takes longer to import than `--help` may take altogether."""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def lint_imports(config: Path) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--config", str(config), "--no-cache"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_go_one_way() -> None:
    result = lint_imports(ROOT / "pyproject.toml")
    assert result.returncode == 0, result.stdout
    assert "1 kept, 0 broken" in result.stdout


def test_the_contract_can_fail(tmp_path: Path) -> None:
    """Turned upside down it must be broken, or it would check nothing."""
    upside_down = tmp_path / "importlinter.toml"
    upside_down.write_text(
        '[tool.importlinter]\nroot_package = "paretoprune"\n[[tool.importlinter.contracts]]\n'
        'name = "upside down"\ntype = "layers"\nlayers = ["paretoprune.core", "paretoprune.store"]\n'
    )
    result = lint_imports(upside_down)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "1 broken" in result.stdout


def test_the_contract_names_every_room() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    rooms = config["contracts"][0]["layers"][3].split(" | ")
    assert sorted(rooms) == sorted(ROOMS)
    for room in ROOMS:
        assert (ROOT / "src" / "paretoprune" / room / "__init__.py").is_file(), f"{room} has no __init__.py"


@pytest.mark.parametrize("module", ["paretoprune", "paretoprune.cli"])
def test_the_command_line_imports_nothing_heavy(module: str) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr.splitlines()[-1]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "paretoprune" in imported
    assert sorted(imported & set(HEAVY)) == []


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [Requirement(text) for text in project["dependencies"]]


def closure(names: set[str]) -> set[str]:
    """The packages that `names` bring along on this machine, themselves included."""
    found: set[str] = set()
    todo = {canonicalize_name(name) for name in names}
    while todo:
        name = todo.pop()
        found.add(name)
        try:
            needed = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:  # for another platform
            continue
        todo |= {
            canonicalize_name(other.name)
            for other in needed
            if other.marker is None or other.marker.evaluate({"extra": ""})
        } - found
    return found


def test_the_core_stays_within_forty_packages_beyond_torch() -> None:
    ours = closure({requirement.name for requirement in declared()}) - closure({"torch"})
    assert len(ours) >= len(declared()) - 3
    assert len(ours) <= 40, sorted(ours)


def test_every_direct_dependency_is_pinned_within_its_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert pins[0].name == "torch"
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        assert versions[canonicalize_name(wanted.name)] in wanted.specifier, wanted
