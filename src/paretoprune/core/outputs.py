"""What a network returned, as a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from paretoprune.core.errors import DataError

if TYPE_CHECKING:
    import torch


def main_output(output: Any) -> torch.Tensor:
    """The tensor that loss and metric look at: the output itself, its `logits`, or else its first tensor.

    Takes tensors, numpy arrays, tuples, lists, mappings, and objects with an attribute `logits`.
    Raises DataError where no tensor is found.
    """
    found = _first(output)
    if found is None:
        raise DataError(
            f"the network returned {type(output).__name__}: no tensor in it; return logits, or write a task"
        )
    return found


def _first(output: Any) -> torch.Tensor | None:
    import torch

    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, np.ndarray):
        return torch.from_numpy(output)
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is not None:
        return _first(logits)
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((found for item in items if (found := _first(item)) is not None), None)
