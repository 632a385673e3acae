"""Numbers that stand for dynamic sizes while the axes are inferred."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from math import isqrt
from typing import Any

import torch
from torch import fx

_FIRST_PRIME = (1_000_003, 2_000_003)
"""Where to look for primes, per run. A prime so large equals no width, and no sum of widths, by coincidence."""
_SMALLEST = 100_000
"""A dynamic size that comes out smaller (a remainder, say) does not stand out from the static ones."""


class Sizes:
    """Concrete shapes of a captured graph's values: every dynamic size has its own prime.

    `samples` maps each size that came out of a dynamic one to the size that it has in a batch of one sample, with
    the other dynamic dims as in the example.
    """

    def __init__(self, graph: fx.Graph, run: int):
        self.samples: dict[int, int] = {}
        self._ones = _symbols(graph)
        self._primes = dict(zip(self._ones, _primes(_FIRST_PRIME[run]), strict=False))
        self._known: dict[Any, int] = {}

    def shape(self, value: Any) -> Any:
        """A tuple of ints for a tensor, a list of them for several, None for what is no tensor."""
        if isinstance(value, torch.Tensor):
            return tuple(self._size(s) for s in value.shape)
        if isinstance(value, (tuple, list)) and value and all(isinstance(v, torch.Tensor) for v in value):
            return [self.shape(v) for v in value]
        return None

    def _size(self, size: Any) -> int:
        if isinstance(size, int):
            return size
        expr = size.node.expr
        if expr not in self._known:
            number = self._known[expr] = int(expr.subs(self._primes))
            if number >= _SMALLEST:
                self.samples.setdefault(number, int(expr.subs(self._ones)))
        return self._known[expr]


def _primes(first: int) -> Iterator[int]:
    for number in count(first):
        if all(number % d for d in range(2, isqrt(number) + 1)):
            yield number


def _symbols(graph: fx.Graph) -> dict[Any, int]:
    """Every size symbol with its size for one sample: 1 for a batch dimension, the example's for others."""
    batch: dict[Any, int] = {}
    found: dict[Any, int] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        for tensor in value if isinstance(value, (tuple, list)) else (value,):
            if not isinstance(tensor, torch.Tensor):
                continue
            for dim, size in enumerate(tensor.shape):
                if isinstance(size, int):
                    continue
                expr = size.node.expr
                for symbol in expr.free_symbols:
                    found.setdefault(symbol, 1)
                if expr.is_Symbol and node.op == "placeholder" and dim == 0:
                    batch[expr] = 1
                elif expr.is_Symbol:
                    found[expr] = size.node.hint or 1
    return {**found, **batch}
