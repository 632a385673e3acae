"""The package installs where nothing can compile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.fault
def test_without_a_compiler_the_package_is_built_without_kernels(tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
    nowhere = tmp_path / "bin"
    nowhere.mkdir()
    result = subprocess.run(
        [sys.executable, "setup.py", "build", "--build-lib", "built"],
        cwd=tmp_path,
        env={**os.environ, "PATH": str(nowhere), "CC": "no-compiler", "CXX": "no-compiler"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "no-compiler" in result.stdout + result.stderr, "a compiler was found: nothing was tested"
    program = """
import numpy as np
from paretoprune.core.errors import TargetError
from paretoprune.sparsity import pack, pattern_of, unpack
from paretoprune.sparsity.kernels import Linear, available
packed = pack(np.eye(8, dtype=np.float32), pattern_of("4x1"))
assert available() == () and (unpack(packed) == np.eye(8)).all()
try:
    Linear(packed)
except TargetError as error:
    print(error)
"""
    used = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "built")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert used.returncode == 0, used.stderr
    assert "install a C++17 compiler" in used.stdout
