"""The extension library: compiled on first use against the headers that OpenVINO's wheel carries, then kept.

Where nothing is to be kept (`core.storage.cache_folder`), for the process alone. The file's name is a digest of all
that goes into it.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paretoprune.core.errors import TargetError, UsageError
from paretoprune.core.storage import atomic, cache_folder
from paretoprune.sparsity.kernels.library import FOLDER, SETS, choose, library

SOURCE = Path(__file__).parent / "extension.cpp"
FLAGS = (
    "-shared",
    "-fPIC",
    "-std=c++17",
    "-O2",
    "-g0",
    "-fvisibility=hidden",
    "-Wno-psabi",
    "-Wno-attributes",
    "-pthread",
)
LONGEST_S = 300
REMEDY = "install a C++17 compiler (g++ or clang++; or name one in CXX), or use target='openvino'"
_FUNCTIONS = ("pp_linear", "pp_linear_work", "pp_conv", "pp_conv_work")


class _Kernels(ctypes.Structure):
    """extension.cpp"""

    _fields_ = [(name, ctypes.c_void_p) for name in _FUNCTIONS]


def openvino() -> Any:
    """The module, or UsageError that names the extra."""
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise UsageError(
            "sparse layers in OpenVINO need openvino, which is not installed: pip install 'paretoprune[openvino]'"
        ) from error


def ready(wanted: str | None = None) -> tuple[Path, str]:
    """(the library, the instruction set that its layers may now be made for).

    Raises TargetError where it or the kernels cannot be had, and says why.
    """
    name = choose(wanted)
    path, opened = _opened()
    kernels = library(name)
    addresses = (ctypes.cast(getattr(kernels, function), ctypes.c_void_p) for function in _FUNCTIONS)
    opened.pp_openvino_kernels(SETS.index(name), _Kernels(*addresses))
    return path, name


@functools.cache
def _opened() -> tuple[Path, ctypes.CDLL]:
    path = extension(_folder())
    try:
        opened = ctypes.CDLL(str(path))
    except OSError as error:
        raise TargetError(f"OpenVINO's extension {path} cannot be loaded: {error}; delete it and run again") from error
    opened.pp_openvino_kernels.argtypes = [ctypes.c_int, _Kernels]
    return path, opened


def extension(folder: Path) -> Path:
    """The compiled library in `folder`, made there if it is missing; never half of it."""
    package, compiler = Path(openvino().__file__).parent, _compiler()
    command = [*compiler, *FLAGS, *_abi(package), f"-I{package / 'include'}", str(SOURCE), str(_runtime(package))]
    path = folder / f"openvino-sparse-{_digest(command)}.so"
    if not path.is_file():
        with atomic(path) as temporary:
            _compile([*command, "-o", str(temporary)])
    return path


def _compile(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"OpenVINO's extension cannot be compiled: {error}; {REMEDY}") from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-200:])
        raise TargetError(f"OpenVINO's extension cannot be compiled with {command[0]}: {said.strip()}; {REMEDY}")


def _compiler() -> list[str]:
    given = os.environ.get("CXX", "").split()
    for candidate in [given] if given else [["g++"], ["clang++"], ["c++"]]:
        if found := shutil.which(candidate[0]):
            return [found, *candidate[1:]]
    missing = f"CXX names {given[0]}, which is not there" if given else "there is no C++ compiler"
    raise TargetError(f"sparse layers in OpenVINO are compiled on first use, and {missing}: {REMEDY}")


def _abi(package: Path) -> list[str]:
    """Of the standard library's classes that the wheel was built with: ours go through its functions."""
    try:
        told = (package / "cmake" / "OpenVINOTargets.cmake").read_text("utf-8")
    except OSError:
        return []
    found = re.search(r"_GLIBCXX_USE_CXX11_ABI=[01]", told)
    return [f"-D{found[0]}"] if found else []


def _runtime(package: Path) -> Path:
    """The library that holds OpenVINO's core, beside headers to compile against."""
    found = sorted(path for path in package.glob("libs/libopenvino.*") if re.search(r"\.(so|dylib)(\.|$)", path.name))
    if not found or not (package / "include" / "openvino" / "op" / "op.hpp").is_file():
        raise TargetError(
            f"openvino in {package} has no {'headers' if found else 'library'} to compile against: install the wheel "
            "from PyPI (pip install --force-reinstall openvino), or use target='openvino'"
        )
    return found[0]


def _digest(command: Sequence[str]) -> str:
    """Of the compiler and its arguments, OpenVINO's build and all source text."""
    about = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256("\0".join([*command, about, str(openvino().__version__)]).encode())
    for file in (SOURCE, *sorted((FOLDER / "csrc").glob("*.hpp"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


def _folder() -> Path:
    if kept := cache_folder():
        return kept
    folder = tempfile.mkdtemp(prefix="paretoprune-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
