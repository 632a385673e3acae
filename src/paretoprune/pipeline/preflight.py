"""The named parts of a search, looked up before any work: a misspelt one should not cost minutes."""

from __future__ import annotations

from typing import Any

import torch

from paretoprune.core.data import Data
from paretoprune.core.errors import UsageError
from paretoprune.core.graph import Example
from paretoprune.core.plugin import look_up
from paretoprune.core.protocols import Target
from paretoprune.core.quality import shifts
from paretoprune.criteria import criterion_of
from paretoprune.pipeline.exporting import check_precision
from paretoprune.pipeline.settings import LEAST_SQUARES, Settings
from paretoprune.search.table import SEARCHERS
from paretoprune.tasks import check_shift


def check_parts(settings: Settings, target: Target, device: str, data: Any) -> None:
    """Raises UsageError for a searcher, criterion, precision or device that is not there, or data of another type."""
    if not isinstance(data, Data):
        raise UsageError(f"data is a {type(data).__name__}; give paretoprune.Data(train, validation, test)")
    look_up("searcher", settings.searcher, SEARCHERS)
    if settings.criterion != LEAST_SQUARES:
        criterion_of(settings.criterion)
    for precision in settings.precisions:
        check_precision(target, precision)
    _check_device(device)


def check_metrics(settings: Settings, example: Example) -> None:
    """Raises DataError for a disturbance that was asked for and cannot be done to such inputs."""
    for how in shifts(settings.asked):
        check_shift(example, how)


def _check_device(device: str) -> None:
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # CUDA that is missing is told by an AssertionError or a RuntimeError, depending on the build.
        why = " ".join(str(error).split())[:160]
        raise UsageError(f"device={device!r} cannot be used: {why}; give 'cpu', or a device of this machine") from error
