"""Zeros that move: weak weights go, and others come where the gradient asks for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from paretoprune.core.errors import UsageError
from paretoprune.recover.zeros.gradual import check_every, check_until
from paretoprune.recover.zeros.masked import Masked

EVERY, UPDATES = 100, 20
"""Steps between two changes: 100 as in the paper, less where a training is so short that there were fewer than 20."""


class Units(Protocol):
    """What of one weight goes and comes as one: single weights or blocks."""

    def scores(self, values: Tensor) -> Tensor:
        """(units,) on the CPU: the mean absolute value of each."""
        ...

    def mask(self, kept: Tensor) -> Tensor:
        """(units,) True or False, to the shape of the weight."""
        ...


class RigL(Masked):
    """Evci et al. 2020, "Rigging the Lottery" (arXiv:1911.11134, algorithm 1), for single weights and blocks.

    Every `every` steps, up to the share `until` of the training, the share f(t) = fraction/2 · (1 + cos(π t / T)) of a
    layer's units that stay is dropped, those of the lowest mean magnitude, and as many come where the mean magnitude of
    the dense gradient is largest (a dropped one may come back). What comes starts at zero, without momentum. The number
    of units never changes. Here the optimizer's step of such an update is taken too.
    """

    def __init__(
        self,
        module: nn.Module,
        units: Mapping[str, Units],
        *,
        fraction: float = 0.3,
        every: int | None = None,
        until: float = 0.75,
    ) -> None:
        super().__init__(module, tuple(units))
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
            raise UsageError(f"fraction={fraction!r}: give the share of units that move at first, above 0, at most 1")
        check_every(every)
        self.units, self.fraction, self.every, self.until = dict(units), fraction, every, check_until(until)
        self._due = False
        self._dense: dict[str, Tensor] = {}

    def penalty(self, step: int, steps: int) -> Tensor | None:
        """Called before the gradients of a step come in."""
        every = self.every or max(1, min(EVERY, steps // UPDATES))
        self._due = (step + 1) % every == 0 and step + 1 < self.until * steps
        return None

    def gradient(self, name: str, parameter: Tensor) -> None:
        if self._due and parameter.grad is not None:
            dense = parameter.grad.detach().clone()
            if name in self._dense:  # of several backward passes the kept part is summed already
                dense += self._dense[name].masked_fill(~self.gone(name), 0.0)
            self._dense[name] = dense
        super().gradient(name, parameter)

    def after_step(self, step: int, steps: int) -> None:
        super().after_step(step, steps)
        if not self._due:
            return
        share = self.fraction / 2 * (1 + math.cos(math.pi * (step + 1) / (self.until * steps)))
        before = {name: self._kept(name) for name in self._dense}
        left = {name: self._dropped(name, kept, int(share * int(kept.sum()))) for name, kept in before.items()}
        self._use(left)
        self._use({name: self._grown(name, kept, int(before[name].sum())) for name, kept in left.items()})
        self._due, self._dense = False, {}

    def _use(self, kept: Mapping[str, Tensor]) -> None:
        self.put({name: self.units[name].mask(units) for name, units in kept.items()})

    def _kept(self, name: str) -> Tensor:
        return self.units[name].scores(self.masks[name].float()) > 0

    def _dropped(self, name: str, kept: Tensor, count: int) -> Tensor:
        scores = self.units[name].scores(self.parameters[name].detach()).masked_fill(~kept, math.inf)
        left = kept.clone()
        left[torch.argsort(scores, stable=True)[:count]] = False
        return left

    def _grown(self, name: str, kept: Tensor, size: int) -> Tensor:
        """As many units as before."""
        dense = self._dense[name].nan_to_num(0.0, 0.0, 0.0)
        scores = self.units[name].scores(dense).masked_fill(kept, -math.inf)
        more = kept.clone()
        more[torch.argsort(scores, descending=True, stable=True)[: size - int(kept.sum())]] = True
        return more
