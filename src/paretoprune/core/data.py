"""Batches: how they are held, split into inputs and labels, and checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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


@contextmanager
def reading(name: str, index: int) -> Iterator[None]:
    """Turn whatever the user's code raises while it makes a batch into a DataError with the index and the cause."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # the user's own code may raise anything
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        cause = lines[-1].strip().removeprefix(f"{type(error).__name__}: ")
        raise DataError(f"{name}: reading batch {index} failed with {type(error).__name__}: {cause}") from error


def numbered(name: str, source: Iterable[Any]) -> Iterator[Any]:
    """The batches of `source`; an exception in its code becomes a DataError with the batch's index and the cause."""
    with reading(name, 0):
        iterator = iter(source)
    index = 0
    while True:
        with reading(name, index):
            batch = next(iterator, _END)
        if batch is _END:
            return
        yield batch
        index += 1


_END = object()


def take(batches: Iterable[Any], samples: int) -> Iterator[tuple[Example, Any]]:
    """Split batches until about `samples` samples were given (the last batch may pass the number)."""
    return map(split_batch, until(batches, samples))


def until(batches: Iterable[Any], samples: int) -> Iterator[Any]:
    """Batches as they are, likewise."""
    given = 0
    for batch in batches:
        yield batch
        given += batch_size(split_batch(batch)[0])
        if given >= samples:
            return


def batch_size(inputs: Example) -> int:
    for _, tensor in inputs.tensors():
        return int(tensor.shape[0])
    raise DataError("a batch holds no tensor; expected x, (x, y) or a dict of tensors")
