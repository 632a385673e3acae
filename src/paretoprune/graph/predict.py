"""What a submodule takes and gives, as functions of the sizes that it is given: fitted to runs at several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import gcd
from typing import Any

import torch
from torch.utils import _pytree as pytree

_PLAIN = (bool, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
_STRUCTURES = (tuple, list, dict)
"""What a graph can hold among the arguments of a call."""


@dataclass(frozen=True)
class Size:
    """A share of a product of sizes that enter (numbered: every dim of every tensor, then the numbers), and `more`."""

    of: tuple[int, ...]
    share: tuple[int, int] = (1, 1)
    more: int = 0

    def at(self, sizes: Sequence[Any]) -> Any:
        product: Any = self.share[0]
        for i in self.of:
            product = product * sizes[i]
        return (product // self.share[1] if self.share[1] > 1 else product) + self.more


@dataclass(frozen=True)
class Call:
    """One call of a submodule: what went in and what came out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass(frozen=True)
class Inputs:
    """How arguments come apart into tensors, numbers and constants, and together again."""

    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    """Of one call, to tell the kinds apart; what is neither tensor nor number is the same in every call."""

    @classmethod
    def of(cls, calls: Sequence[Call]) -> Inputs | None:
        """None where a graph cannot hold the arguments, or where they differ in more than sizes."""
        flat = [pytree.tree_flatten((c.args, c.kwargs)) for c in calls]
        leaves, spec = flat[0]
        if not _plain(spec) or any(s != spec for _, s in flat):
            return None
        for column in zip(*(values for values, _ in flat), strict=True):
            alike = all(isinstance(v, _PLAIN) and v == column[0] for v in column)
            if not alike and not all(_tensor(v) for v in column) and not all(_number(v) for v in column):
                return None
        return cls(spec, tuple(v.detach().to("meta") if _tensor(v) else v for v in leaves))

    def taken(self, args: Any, kwargs: Any) -> tuple[list[Any], list[Any]]:
        """Tensors and numbers of a call. Raises TypeError where it is not like the recorded ones."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if spec != self.spec:
            raise TypeError("a submodule is called in another way than in the network's own run")
        pairs = list(zip(leaves, self.leaves, strict=True))
        return [v for v, like in pairs if _tensor(like)], [v for v, like in pairs if _number(like)]

    def arguments(self, tensors: Any, numbers: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The other way round."""
        given, counted = iter(tensors), iter(numbers)
        leaves = [next(given) if _tensor(v) else next(counted) if _number(v) else v for v in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs


@dataclass(frozen=True)
class Prediction:
    """`outputs`: per leaf of the result a tensor's (sizes, example), or a constant.

    `whole`: its shapes depend on the data, so that it can only be handed on as one value.
    """

    inputs: Inputs
    spec: pytree.TreeSpec
    outputs: tuple[tuple[tuple[Size, ...], torch.Tensor] | Any, ...]
    whole: bool = False

    @property
    def single(self) -> bool:
        return not self.whole and self.spec.is_leaf()

    def made(self, tensors: Sequence[torch.Tensor], numbers: Sequence[Any]) -> list[torch.Tensor]:
        """Tensors of the predicted shapes."""
        device = tensors[0].device if tensors else None
        if self.whole:
            return [torch.empty((), device=device)]
        sizes = [s for t in tensors for s in t.shape] + list(numbers)
        shaped = [o for o in self.outputs if _predicted(o)]
        return [
            torch.empty([size.at(sizes) for size in dims], dtype=like.dtype, device=device) for dims, like in shaped
        ]

    def given(self, tensors: list[torch.Tensor]) -> Any:
        """What the submodule's caller gets."""
        if self.whole:
            return tensors[0]
        made = iter(tensors)
        return pytree.tree_unflatten([next(made) if _predicted(o) else o for o in self.outputs], self.spec)

    def values(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The same as a graph notes it: one tensor, a list of them, or None where no shape is known."""
        if self.whole or not tensors:
            return None
        return tensors[0] if self.single else list(tensors)


def predict(runs: Sequence[Sequence[Call]]) -> tuple[Prediction, ...] | None:
    """Per call of one run. `runs` are of the same network at several sizes; None where they do not correspond."""
    if not runs[0] or len({len(calls) for calls in runs}) != 1:
        return None
    found = [_predict(calls) for calls in zip(*runs, strict=True)]
    return None if any(p is None for p in found) else tuple(p for p in found if p is not None)


def _predict(calls: Sequence[Call]) -> Prediction | None:
    inputs = Inputs.of(calls)
    if inputs is None:
        return None
    flat = [pytree.tree_flatten(c.output) for c in calls]
    spec = flat[0][1]
    sizes = [_sizes(c) for c in calls]
    columns = zip(*(values for values, _ in flat), strict=True) if all(s == spec for _, s in flat) else None
    found = None if columns is None else [_leaf(column, sizes) for column in columns]
    if found is None or any(f is None for f in found):
        return Prediction(inputs, spec, (), whole=True)
    return Prediction(inputs, spec, tuple(f[0] for f in found if f is not None))


def _leaf(column: tuple[Any, ...], sizes: Sequence[Sequence[int]]) -> tuple[Any] | None:
    """A tensor's sizes with an example of it, or a constant; None where it cannot be foreseen."""
    like = column[0]
    if not _tensor(like):
        same = all(isinstance(v, (*_PLAIN, int)) and v == like for v in column)
        return (like,) if same else None
    if any(not _tensor(v) or v.dtype != like.dtype or v.ndim != like.ndim for v in column):
        return None
    dims = [_size([v.shape[d] for v in column], sizes) for d in range(like.ndim)]
    if any(d is None for d in dims):
        return None
    return ((tuple(d for d in dims if d is not None), like.detach().to("meta")),)


def _size(wanted: Sequence[int], sizes: Sequence[Sequence[int]]) -> Size | None:
    """The same in every run, or one that enters, a share of it, it and a constant, or a share of a product of two."""
    if len(set(wanted)) == 1:
        return Size((), (wanted[0], 1))
    columns = list(zip(*sizes, strict=True))
    moving = [i for i, c in enumerate(columns) if len(set(c)) > 1]
    candidates = [Size((i,)) for i in moving]
    candidates += [Size((i,), share) for i in moving if (share := _share(wanted[0], columns[i][0]))]
    candidates += [Size((i,), more=wanted[0] - columns[i][0]) for i in moving]
    for i, j in combinations(range(len(columns)), 2):
        share = _share(wanted[0], columns[i][0] * columns[j][0]) if i in moving or j in moving else None
        candidates += [Size((i, j), share)] if share else []
    fits = (c for c in candidates if all(c.at(s) == w for s, w in zip(sizes, wanted, strict=True)))
    return next(fits, None)


def _share(wanted: int, of: int) -> tuple[int, int] | None:
    common = gcd(wanted, of)
    return (wanted // common, of // common) if wanted and of else None


def _sizes(call: Call) -> list[int]:
    leaves = pytree.tree_leaves((call.args, call.kwargs))
    return [s for v in leaves if _tensor(v) for s in v.shape] + [v for v in leaves if _number(v)]


def _plain(spec: pytree.TreeSpec) -> bool:
    return spec.is_leaf() or (spec.type in _STRUCTURES and all(_plain(c) for c in spec.children()))


def _predicted(output: Any) -> bool:
    return isinstance(output, tuple)


def _tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _number(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
