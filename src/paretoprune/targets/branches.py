"""A file holds one way through forward: where the data decide which, the export is refused.

The tracer warns wherever a tensor becomes a Python value, be it a size, which is harmless, or data. Run once more on
tensors without values, a network fails at the latter alone.
"""

from __future__ import annotations

import linecache
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.jit._trace import TracerWarning

from paretoprune.core.errors import TargetError

Place = tuple[str, int]
"""A file and a line in it."""


@contextmanager
def python_values() -> Iterator[set[Place]]:
    """Inside the block the tracer's warnings are collected as the places that they are about, not shown."""
    places: set[Place] = set()
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def collect(message: Any, category: Any, filename: str, lineno: int, *more: Any, **named: Any) -> None:
            if issubclass(category, TracerWarning):
                places.add((filename, lineno))
            else:
                shown(message, category, filename, lineno, *more, **named)

        warnings.simplefilter("always", TracerWarning)
        warnings.showwarning = collect
        yield places


def check_one_way(module: nn.Module, name: str, tensors: Sequence[torch.Tensor], places: set[Place]) -> None:
    """Raises TargetError naming the line at which `module` makes a Python value of its data."""
    if not places:
        return
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            module(*(mode.from_tensor(t) for t in tensors))
    except Exception as error:  # whatever a network raises without values; only where is asked
        found = _place(error, places)
        code = linecache.getline(*found).strip() if found else ""
        if found and not code.startswith("assert "):  # a file without the assertion computes the same
            raise TargetError(
                f"{name} makes a Python value of its data at {found[0]}:{found[1]}: {code}; the file would hold the "
                "example's value for ever: write that step with torch operators (torch.where for a branch)"
            ) from error


def _place(error: Exception, places: set[Place]) -> Place | None:
    trace = error.__traceback__
    while trace is not None:
        here = (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        if here in places:
            return here
        trace = trace.tb_next
    return None
