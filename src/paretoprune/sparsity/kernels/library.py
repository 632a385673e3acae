"""Finding the compiled kernels: one shared library for each instruction set, made of the same sources."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import os
from pathlib import Path

from paretoprune.core.errors import TargetError, UsageError

SETS = ("portable", "avx2", "avx512", "avx512-vnni")
"""From the narrowest on; the number is what `pp_supports` is asked."""

UNTRIED = ("avx512", "avx512-vnni")
"""They compile, and have not been run on such a processor yet: only who names them gets them."""

VARIABLE = "PARETOPRUNE_KERNELS"
"""Names a set that is to be used in place of the best one."""

FOLDER = Path(__file__).parent
REMEDY = "install a C++17 compiler (g++ or clang++) and then paretoprune again: pip install --force-reinstall --no-deps"


def built() -> tuple[str, ...]:
    """Sets that were compiled with the package."""
    return tuple(name for name in SETS if _file(name) is not None)


def available() -> tuple[str, ...]:
    """Sets that were compiled and that this processor has, the best last; empty without compiled kernels."""
    if _file("portable") is None:
        return ()
    supports = _open("portable").pp_supports
    return tuple(name for name in built() if supports(SETS.index(name)))


def choose(wanted: str | None = None) -> str:
    """`wanted`, else what the environment names, else the best one that was tried.

    Raises TargetError where it cannot be had.
    """
    wanted, usable = wanted or os.environ.get(VARIABLE) or None, available()
    if wanted is not None and wanted not in SETS:
        raise UsageError(f"instruction set {wanted!r}: expected one of {', '.join(SETS)}")
    if not usable:
        raise TargetError(f"the sparse kernels were not compiled when paretoprune was installed; {REMEDY}")
    if wanted is None:
        return [name for name in usable if name not in UNTRIED][-1]
    if wanted not in built():
        raise TargetError(f"instruction set {wanted!r}: its kernels were not compiled; {REMEDY}")
    if wanted not in usable:
        raise TargetError(f"instruction set {wanted!r}: this processor lacks it; it has {', '.join(usable)}")
    return wanted


def library(wanted: str | None = None) -> ctypes.CDLL:
    return _open(choose(wanted))


@functools.cache
def _open(name: str) -> ctypes.CDLL:
    file = _file(name)
    try:
        opened = ctypes.CDLL(str(file))
    except OSError as error:
        raise TargetError(f"the kernels {file} cannot be loaded: {error}; {REMEDY}") from error
    for function in ("pp_linear", "pp_conv", "pp_binary_linear", "pp_binary_conv", "pp_popcount"):
        getattr(opened, function).restype = None
    opened.pp_panel_bytes.restype = ctypes.c_int64
    for function in ("linear", "conv", "int8_linear", "int8_conv", "binary_linear", "binary_conv", "popcount"):
        getattr(opened, f"pp_{function}_work").restype = ctypes.c_int64
    return opened


def _file(name: str) -> Path | None:
    stem = "_" + name.replace("-", "_")
    found = (FOLDER / (stem + suffix) for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((file for file in found if file.is_file()), None)
