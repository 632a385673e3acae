"""Batches on the way into a network: moved, cut, chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paretoprune.core.data import batch_size, split_batch
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


def several(batches: Iterable[tuple[Example, Any]]) -> Iterator[tuple[Example, Any]]:
    """The batches, without those of one sample that follow larger ones: one sample has no batch statistics."""
    larger = False
    for inputs, labels in batches:
        size = batch_size(inputs)
        if size > 1 or not larger:
            yield inputs, labels
        larger = larger or size > 1


def rounds(batches: Iterable[Any], seed: int) -> Iterator[tuple[int | None, tuple[Example, Any]]]:
    """(index in the list or None, batch) for ever; whole rounds, batches of one sample left out among larger ones."""
    if isinstance(batches, Sequence):
        return _list_rounds(batches, seed)
    return ((None, batch) for batch in _endless(batches))


def _endless(batches: Iterable[Any]) -> Iterator[tuple[Example, Any]]:
    while True:
        any_batch = False
        for batch in several(split_batch(b) for b in batches):
            any_batch = True
            yield batch
        if not any_batch:
            raise DataError("no training batch came out: distillation needs an iterable that can be read again")


def _list_rounds(batches: Sequence[Any], seed: int) -> Iterator[tuple[int, tuple[Example, Any]]]:
    generator = torch.Generator().manual_seed(seed)
    if len(batches) == 0:
        raise DataError("no training batch: distillation needs at least one")
    sizes = [_size(b) for b in batches]
    usable = [i for i, size in enumerate(sizes) if size > 1 or max(sizes) == 1]
    while True:
        for i in torch.randperm(len(usable), generator=generator).tolist():
            yield usable[i], split_batch(batches[usable[i]])


def _size(batch: Any) -> int:
    return batch_size(split_batch(batch)[0])
