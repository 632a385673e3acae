"""The task's metric over a set of batches, with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from paretoprune.core.data import split_batch
from paretoprune.core.errors import DataError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.measurement import Measurement
from paretoprune.core.protocols import Task

Z_95 = 1.959963984540054

Watch = Callable[[Example, Any, Any, Tensor], None]
"""Sees (inputs, output, labels, scores of shape (samples,)) of every batch of a pass."""


def evaluate(
    predict: Callable[[Example], Any],
    batches: Iterable[Any],
    task: Task,
    cap: int | None = None,
    watch: Sequence[Watch] = (),
) -> Measurement:
    """Mean per-sample score in 0 to 1 (unit "share") with a Wilson 95 % interval; `runs` is the number of samples.

    `predict` returns what the network returns, as tensors or numpy arrays (a tuple of one array counts as the array).
    At most `cap` batches are read; each is also shown to everyone in `watch`. Raises DataError for no batches or no
    labels, UsageError for scores beyond 0 to 1.
    """
    total, samples = 0.0, 0
    with torch.no_grad():
        for index, batch in enumerate(islice(batches, cap)):
            inputs, labels = split_batch(batch)
            if labels is None:
                raise DataError(f"batch {index} has no labels: {task.metric} cannot be measured; give (x, y) or a dict")
            output, given = as_torch(predict(inputs)), as_torch(labels)
            scores = _scores(task, output, given, index)
            total += float(scores.sum())
            samples += len(scores)
            for look in watch:
                look(inputs, output, given, scores)
    if samples == 0:
        raise DataError(f"no samples to measure {task.metric} on: the set is empty")
    mean = total / samples
    low, high = wilson(mean, samples)
    return Measurement(mean, low, high, samples, "share")


def _scores(task: Task, output: Any, labels: Any, index: int) -> Tensor:
    scores = task.correct(output, labels)
    if not isinstance(scores, Tensor) or scores.ndim != 1:
        raise UsageError(f"task {task.name!r}: correct() must return a tensor of shape (samples,), got {_what(scores)}")
    scores = scores.double()
    if not bool(((scores >= 0) & (scores <= 1)).all()):
        raise UsageError(f"task {task.name!r}: correct() gave scores outside 0 to 1 (or NaN) on batch {index}")
    return scores


def _what(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__


def as_torch(value: Any) -> Any:
    """`value` with numpy arrays turned into tensors; a tuple of one array is the array."""
    if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], np.ndarray):
        value = value[0]
    return pytree.tree_map(lambda leaf: torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf, value)


def wilson(share: float, samples: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); conservative for scores between 0 and 1."""
    scale = 1 + Z_95**2 / samples
    centre = (share + Z_95**2 / (2 * samples)) / scale
    half = Z_95 * math.sqrt(share * (1 - share) / samples + Z_95**2 / (4 * samples**2)) / scale
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
