"""Batches on the way into a network: moved, cut, chosen."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paretoprune.core.data import batch_size, numbered, reading, split_batch
from paretoprune.core.errors import DataError
from paretoprune.core.graph import Example


def device_of(module: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU where there is none."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def to_device(value: Any, device: torch.device) -> Any:
    """`value` (an Example, a tensor, any tree of them) with its tensors on `device`."""
    if isinstance(value, Example):
        return Example(to_device(value.args, device), to_device(dict(value.kwargs), device))
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, value)


def part(inputs: Example, start: int, stop: int) -> Example:
    """Samples `start` to `stop` (dimension 0 of every input)."""

    def cut(leaf: Any) -> Any:
        return leaf[start:stop] if isinstance(leaf, Tensor) and leaf.ndim else leaf

    return Example(pytree.tree_map(cut, inputs.args), pytree.tree_map(cut, dict(inputs.kwargs)))


def chosen(number: int, generator: torch.Generator, *tensors: Tensor) -> list[Tensor]:
    """The same `number` rows of each, drawn without replacement and kept in order."""
    picks = torch.randperm(len(tensors[0]), generator=generator)[:number].sort().values
    return [t.index_select(0, picks.to(t.device)) for t in tensors]


def several(batches: Iterable[tuple[Example, Any]]) -> Iterator[tuple[Example, Any]]:
    """The batches, without those of one sample that follow larger ones: one sample has no batch statistics."""
    larger = False
    for inputs, labels in batches:
        size = batch_size(inputs)
        if size > 1 or not larger:
            yield inputs, labels
        larger = larger or size > 1


@dataclass(frozen=True)
class Batch:
    """One batch of training: split, and as the user's iterable gave it.

    `index`: its place in a list that gives the same tensors every time, else None.
    """

    inputs: Example
    labels: Any
    given: Any
    index: int | None = None

    @classmethod
    def of(cls, given: Any) -> Batch:
        return cls(*split_batch(given), given)

    def to(self, device: torch.device) -> Batch:
        inputs, labels, given = (to_device(part, device) for part in (self.inputs, self.labels, self.given))
        return Batch(inputs, labels, given, self.index)


def rounds(batches: Iterable[Any], seed: int, name: str = "training") -> Iterator[Batch]:
    """Batches for ever, in whole rounds; those of one sample are left out among larger ones.

    A list is gone round in a seeded order, another iterable is read again and again as it comes. Raises DataError for
    none, for an iterator, and for an exception in the iterable's own code, with the index of the batch.
    """
    if isinstance(batches, Iterator):
        raise DataError(
            f"{name}: the batches can be read only once ({type(batches).__name__}); give a list, a DataLoader, or an "
            "object whose __iter__ starts again"
        )
    return _list_rounds(batches, seed, name) if isinstance(batches, Sequence) else _endless(batches, name)


def _endless(batches: Iterable[Any], name: str) -> Iterator[Batch]:
    while True:
        larger = any_batch = False
        for given in numbered(name, batches):
            batch = Batch.of(given)
            size = batch_size(batch.inputs)
            if size > 1 or not larger:
                any_batch = True
                yield batch
            larger = larger or size > 1
        if not any_batch:
            raise DataError(f"{name}: no training batch came out: give an iterable of batches that can be read again")


def _list_rounds(batches: Sequence[Any], seed: int, name: str) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    if len(batches) == 0:
        raise DataError(f"{name}: no training batch: give at least one")
    seen = [_seen(_at(batches, i, name).inputs) for i in range(len(batches))]
    largest = max(size for size, _ in seen)
    usable = [i for i, (size, _) in enumerate(seen) if size > 1 or largest == 1]
    while True:
        for i in torch.randperm(len(usable), generator=generator).tolist():
            batch = _at(batches, usable[i], name)
            same = seen[usable[i]][1]() is _first(batch.inputs)
            yield replace(batch, index=usable[i] if same else None)


def _seen(inputs: Example) -> tuple[int, weakref.ref[Tensor]]:
    """(samples, first tensor without keeping it): a sequence may make its batches anew each time."""
    return batch_size(inputs), weakref.ref(_first(inputs))


def _first(inputs: Example) -> Tensor:
    return next(tensor for _, tensor in inputs.tensors())


def _at(batches: Sequence[Any], index: int, name: str) -> Batch:
    with reading(name, index):
        given = batches[index]
    return Batch.of(given)
