"""Proof of thin layers: the program with W = second · first in the place of each weight must give the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from zlib import crc32

import torch
from torch import Tensor

from paretoprune.core.errors import SurgeryError
from paretoprune.graph.functional import written
from paretoprune.graph.reference import Retyped, TypeInsisted, Verdict, judged
from paretoprune.graph.surgery import Cut
from paretoprune.graph.thin import ThinNames, product
from paretoprune.graph.traced import TracedGraph, tensors_of
from paretoprune.graph.values import Weights


def check_thin(graph: TracedGraph, whole: Cut, thin: Cut, names: Sequence[ThinNames]) -> None:
    """Compare in double precision (in the network's own where its graph insists on that), at two batch sizes.

    With the network's own tensors and with random ones, which show what zeros would hide. Raises SurgeryError.
    """
    for weights in ("own", "random"):
        verdict = _compare(graph, whole, thin, names, weights)
        if not verdict.agrees:
            raise SurgeryError(
                f"the network with two thin layers in the place of {', '.join(repr(n.weight) for n in names[:6])} "
                f"differs from the one with their product by {verdict.error:.3g} of the output's scale (allowed "
                f"{verdict.tolerance:g}); leave these out of ranks= and report the network"
            )


def _compare(graph: TracedGraph, whole: Cut, thin: Cut, names: Sequence[ThinNames], weights: Weights) -> Verdict:
    with suppress(TypeInsisted):
        return _compare_in(graph, whole, thin, names, weights, torch.float64)
    return _compare_in(graph, whole, thin, names, weights, None)


def _compare_in(
    graph: TracedGraph, whole: Cut, thin: Cut, names: Sequence[ThinNames], weights: Weights, dtype: torch.dtype | None
) -> Verdict:
    side = _Thin(thin, weights, dtype)
    product = _Product(side, whole, names)
    reference = Retyped(whole.program.module, product, dtype)
    return judged(graph, reference, Retyped(thin.program.module, side, dtype), weights)


class _Thin:
    """The tensors of the thin program, its own or random ones that are seeded by name; on the CPU, made when read."""

    def __init__(self, thin: Cut, weights: Weights, dtype: torch.dtype | None):
        self.tensors = tensors_of(thin.program.module)
        self._weights, self._dtype = weights, dtype
        self._written = written(thin.program.module.graph)
        self._held: dict[str, Tensor] = {}

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        if name in self._held:
            return self._held[name]
        made = self.made(name)
        if name in self._written:
            self._held[name] = made
        return made

    def made(self, name: str) -> Tensor:
        given = self.tensors[name].detach().cpu()
        if not given.is_floating_point():
            return given.clone()
        dtype = self._dtype or given.dtype
        if self._weights == "own":
            return given.to(dtype, copy=True)
        generator = torch.Generator().manual_seed(crc32(name.encode()))
        noise = torch.randn(given.shape, generator=generator).to(dtype)
        return noise.abs_().add_(0.5) if given.ndim < 2 else noise.div_(max(given[0].numel(), 1) ** 0.5)

    def large(self, name: str) -> bool:
        return False

    def rows(self, name: str) -> Iterator[Tensor]:
        yield self[name]


class _Product(_Thin):
    """The tensors of the whole program, made from those of the thin one."""

    def __init__(self, thin: _Thin, whole: Cut, names: Sequence[ThinNames]):
        super().__init__(whole, thin._weights, thin._dtype)
        self._thin = thin
        self._pairs = {n.weight: n for n in names}
        self._renamed: Mapping[str, str] = {n.bias: n.new_bias for n in names if n.bias and n.new_bias}

    def made(self, name: str) -> Tensor:
        if name not in self._pairs:
            return self._thin.made(self._renamed.get(name, name))
        first, second = (self._thin.made(n) for n in (self._pairs[name].first, self._pairs[name].second))
        return product(first, second)
