"""One label out of C classes per sample.

Outputs are logits of shape (samples, C): a tensor, the `logits` of an object or mapping, or the first tensor of a tuple
or mapping. Labels are integers of shape (samples,).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from paretoprune.core.errors import DataError
from paretoprune.core.outputs import main_output
from paretoprune.core.protocols import Task


def _labels(labels: Any, logits: Tensor) -> Tensor:
    return torch.as_tensor(labels).to(logits.device).long()


def loss(output: Any, labels: Any) -> Tensor:
    """Mean cross-entropy in nats."""
    logits = main_output(output)
    return functional.cross_entropy(logits, _labels(labels, logits))


def correct(output: Any, labels: Any) -> Tensor:
    """1.0 where the largest logit is the label's, else 0.0; a row with NaN is wrong. Shape (samples,)."""
    logits = main_output(output)
    hit = logits.argmax(dim=1) == _labels(labels, logits)
    return (hit & ~logits.isnan().any(dim=1)).float()


def check(output: Any, labels: Any) -> None:
    """Raise DataError where labels cannot be class numbers of this output."""
    logits = main_output(output)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise DataError(
            f"the network's output has shape {tuple(logits.shape)}; classification needs logits (samples, classes) "
            "with at least 2 classes: give another task"
        )
    given, classes = torch.as_tensor(labels), logits.shape[1]
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise DataError(f"labels are {given.dtype}; classification needs integers 0 to {classes - 1}: convert them")
    if given.ndim != 1:
        raise DataError(
            f"labels have shape {tuple(given.shape)}; expected one class number per sample, shape (samples,)"
        )
    given = given.long()
    if len(given) and (int(given.min()) < 0 or int(given.max()) >= classes):
        raise DataError(
            f"labels run from {int(given.min())} to {int(given.max())}, but the network has {classes} classes "
            f"(0 to {classes - 1}): fix the labels or the last layer"
        )


CLASSIFICATION = Task("classification", loss, correct, "accuracy", check)
