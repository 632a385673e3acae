"""Batches: how they are held, split into inputs and labels, and checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from paretoprune.core.errors import DataError
from paretoprune.core.graph import Example

LABEL_KEYS = ("labels", "label", "target", "targets", "y")


@dataclass(frozen=True)
class Data:
    """Disjoint sets of batches, each an iterable that can be iterated again; a batch is x, (x, y) or a dict.

    `validation` is the search's. `calibration` (default: `train`) feeds reconstruction, recalibration and int8 ranges.
    """

    train: Iterable[Any]
    validation: Iterable[Any]
    test: Iterable[Any]
    calibration: Iterable[Any] | None = None

    @property
    def calibrating(self) -> Iterable[Any]:
        return self.train if self.calibration is None else self.calibration


def split_batch(batch: Any) -> tuple[Example, Any]:
    """(inputs, labels or None) of a batch: x, (x, y), (x, ..., y) or a dict with one of LABEL_KEYS."""
    if isinstance(batch, dict):
        labels = [k for k in LABEL_KEYS if k in batch]
        inputs = {k: v for k, v in batch.items() if k not in labels[:1]}
        if not inputs:
            raise DataError(f"a batch has the keys {sorted(batch)}: no input is left beside the labels")
        return Example((), inputs), (batch[labels[0]] if labels else None)
    if isinstance(batch, (tuple, list)):
        if len(batch) == 0:
            raise DataError("a batch is an empty tuple; expected x, (x, y) or a dict")
        if len(batch) == 1:
            return Example.of(batch[0]), None
        *inputs_, labels_ = batch
        if len(inputs_) == 1:
            return Example.of(inputs_[0]), labels_
        return Example(tuple(inputs_)), labels_
    return Example((batch,)), None


def take(batches: Iterable[Any], samples: int) -> Iterator[tuple[Example, Any]]:
    """Split batches until about `samples` samples were given (the last batch may pass the number)."""
    given = 0
    for batch in batches:
        inputs, labels = split_batch(batch)
        yield inputs, labels
        given += batch_size(inputs)
        if given >= samples:
            return


def batch_size(inputs: Example) -> int:
    for _, tensor in inputs.tensors():
        return int(tensor.shape[0])
    raise DataError("a batch holds no tensor; expected x, (x, y) or a dict of tensors")
