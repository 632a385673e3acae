"""A user's batches, fitted to the network's inputs on every pass."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from paretoprune.core.data import Data, numbered, split_batch
from paretoprune.core.errors import DataError
from paretoprune.core.graph import Example

Dynamic = Mapping[str, Collection[int]]
"""Dimensions beside 0 whose size may differ from the example's, by input name."""


class Batches:
    """An iterable of (Example, labels or None) pairs that can be iterated again.

    Every batch is matched with the example's inputs: their names, shapes (beyond dimension 0) and types. An exception
    in the user's iterable becomes a DataError with the batch's index. At most `cap` batches are given.
    """

    def __init__(
        self, name: str, source: Iterable[Any], example: Example, cap: int | None = None, dynamic: Dynamic | None = None
    ) -> None:
        _refuse_one_shot(name, source)
        if cap is not None and cap < 1:
            raise DataError(f"{name}: cap={cap}; at least one batch is needed")
        self.name = name
        self.source = source
        self.example = example
        self.cap = cap
        self.dynamic = dynamic or {}

    def __iter__(self) -> Iterator[tuple[Example, Any]]:
        for index, batch in enumerate(islice(numbered(self.name, self.source), self.cap)):
            yield self.fit(index, batch)

    def fit(self, index: int, batch: Any) -> tuple[Example, Any]:
        """The batch as the network takes it. Raises DataError that names the batch."""
        try:
            inputs, labels = _split(batch, self.example)
            inputs = _match(inputs, self.example)
            _compare(inputs, self.example, self.dynamic)
        except DataError as error:
            raise DataError(f"{self.name}, batch {index}: {error}") from error
        return inputs, labels

    @property
    def sized(self) -> bool:
        """Whether the number of batches is known to be finite."""
        return self.cap is not None or hasattr(self.source, "__len__")


class BatchList(Batches, Sequence[tuple[Example, Any]]):
    """Batches over a list: also by index."""

    def __len__(self) -> int:
        length = len(self.source)  # type: ignore[arg-type]
        return length if self.cap is None else min(length, self.cap)

    def __getitem__(self, index: Any) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.fit(index, self.source[index])  # type: ignore[index]


def fitted(
    name: str, source: Iterable[Any], example: Example, cap: int | None = None, dynamic: Dynamic | None = None
) -> Batches:
    """`source` as Batches; unchanged if it is so already."""
    if isinstance(source, Batches):
        return source
    kind = BatchList if isinstance(source, (list, tuple)) else Batches
    return kind(name, source, example, cap, dynamic)


def prepare(data: Data, example: Any, *, cap: int | None = None, dynamic: Dynamic | None = None) -> Data:
    """The same data with every set fitted to the network's inputs; `cap`: most batches per set and pass."""
    inputs = Example.of(example)
    return Data(
        fitted("train", data.train, inputs, cap, dynamic),
        fitted("validation", data.validation, inputs, cap, dynamic),
        fitted("test", data.test, inputs, cap, dynamic),
        None if data.calibration is None else fitted("calibration", data.calibration, inputs, cap, dynamic),
    )


def _refuse_one_shot(name: str, source: Any) -> None:
    if isinstance(source, (torch.Tensor, str, bytes, Mapping)):
        raise DataError(f"{name} is a {type(source).__name__}; expected an iterable of batches, e.g. [(x, y), …]")
    if isinstance(source, Iterator):
        raise DataError(
            f"{name} can be read only once ({type(source).__name__}); give a list, a DataLoader, or an object whose "
            "__iter__ starts again"
        )
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        raise DataError(f"{name} is a {type(source).__name__}; expected an iterable of batches, e.g. [(x, y), …]")


def _split(batch: Any, example: Example) -> tuple[Example, Any]:
    """`split_batch`, but a tuple of exactly the example's several inputs has no labels."""
    several = not example.kwargs and len(example.args) > 1
    if several and isinstance(batch, (tuple, list)) and len(batch) == len(example.args) and not _is_pair(batch):
        return Example.of(batch), None
    return split_batch(batch)


def _is_pair(batch: Any) -> bool:
    """Whether the batch is (Example, labels) already."""
    return isinstance(batch[0], Example)


def _match(inputs: Example, example: Example) -> Example:
    """Inputs called the way the example calls the network; keys that it does not have are dropped."""
    if example.kwargs and inputs.kwargs:
        missing = [k for k in example.kwargs if k not in inputs.kwargs]
        if missing:
            raise DataError(
                f"has the keys {_keys(inputs)}; the network's example has {_keys(example)}: rename {missing}"
            )
        return Example(inputs.args, {k: inputs.kwargs[k] for k in example.kwargs})
    if inputs.kwargs and not inputs.args:
        if len(inputs.kwargs) == len(example.args) == 1:
            return Example(tuple(inputs.kwargs.values()))
        raise DataError(
            f"has the keys {_keys(inputs)} beside the labels, but the network takes {len(example.args)} positional "
            "input(s): give an example that is a dict with these keys, or batches that are tuples"
        )
    if len(inputs.args) != len(example.args) or inputs.kwargs.keys() != example.kwargs.keys():
        raise DataError(f"has {_count(inputs)}; the network's example has {_count(example)}")
    return inputs


def _keys(inputs: Example) -> str:
    return ", ".join(repr(k) for k in inputs.kwargs)


def _count(inputs: Example) -> str:
    return f"{len(inputs.args)} positional input(s)" + (f" and the keys {_keys(inputs)}" if inputs.kwargs else "")


def _compare(inputs: Example, example: Example, dynamic: Dynamic) -> None:
    """Shapes beyond dimension 0 and types must be the example's."""
    given, expected = list(inputs.tensors()), list(example.tensors())
    if len(given) != len(expected):
        raise DataError(f"holds {len(given)} tensor(s); the network's example holds {len(expected)}")
    samples = {int(tensor.shape[0]) for _, tensor in given if tensor.ndim}
    if len(samples) > 1:
        raise DataError(f"its inputs have {sorted(samples)} samples: dimension 0 must be the same in all")
    for (name, tensor), (_, wanted) in zip(given, expected, strict=True):
        if not isinstance(tensor, torch.Tensor):
            raise DataError(f"input {name!r} is a {type(tensor).__name__}; expected a torch tensor")
        free = {0, *dynamic.get(name, ())}
        same = tensor.ndim == wanted.ndim and all(
            d in free or a == b for d, (a, b) in enumerate(zip(tensor.shape, wanted.shape, strict=True))
        )
        if not same:
            raise DataError(f"input {name!r} has shape {_shape(tensor, free)}; the example has {_shape(wanted, free)}")
        if tensor.dtype != wanted.dtype:
            raise DataError(f"input {name!r} is {tensor.dtype}; the example is {wanted.dtype}: convert the batches")


def _shape(tensor: torch.Tensor, free: Collection[int]) -> str:
    return "(" + ", ".join("any" if d in free else str(n) for d, n in enumerate(tensor.shape)) + ")"
