"""L0 regularisation: a gate on every position, which the training opens or closes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from paretoprune.core.errors import UsageError
from paretoprune.recover.sparse.groups import Groups
from paretoprune.recover.sparse.method import check_strength
from paretoprune.recover.sparse.schedule import Schedule, schedule_of

BETA, LOW, HIGH = 2 / 3, -0.1, 1.1
"""Temperature and stretch of the hard concrete distribution, as in Louizos et al. 2018, § 4."""
OPEN = 3.0
"""log α at the start: the gate stands at 1 in eval mode, and is above 0 with probability 0.99."""
RATE = 0.1
"""Step of the gates' own optimizer (Adam)."""
PRICE_RATE = 0.1
"""How fast the price of an open position rises while more are open than the schedule says."""


def probability(log_alpha: Tensor) -> Tensor:
    """P(gate > 0): Louizos et al. 2018, eq. 12."""
    return torch.sigmoid(log_alpha - BETA * math.log(-LOW / HIGH))


def sampled(log_alpha: Tensor) -> Tensor:
    """A draw of the hard concrete distribution, eq. 10 and 11, from torch's random state."""
    u = torch.rand_like(log_alpha).clamp(1e-6, 1 - 1e-6)
    s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / BETA)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def expected(log_alpha: Tensor) -> Tensor:
    """The gate of eval mode, eq. 13."""
    return (torch.sigmoid(log_alpha) * (HIGH - LOW) + LOW).clamp(0, 1)


class Gated(nn.Module):
    """`module` with a gate on every position of the groups; in training mode gates are drawn anew for every batch.

    The gates multiply what reads a position, so that nonlinearities before it do not matter. They are on the CPU and no
    parameters of this module: `L0Gates` steps them itself. `fold_` multiplies them into the weights of eval mode; after
    it `module` alone computes what this module computed in eval mode.
    """

    def __init__(self, module: nn.Module, groups: Groups) -> None:
        super().__init__()
        self.module, self.groups = module, groups
        self.log_alpha = {a: torch.full((n,), OPEN, requires_grad=True) for a, n in groups.sizes.items()}
        self.fixed: dict[str, Tensor] = {}
        self.train(module.training)

    def gates(self) -> dict[str, Tensor]:
        """By axis id (positions,), 0 to 1."""
        if self.fixed:
            return self.fixed
        draw = sampled if self.training else expected
        return {axis: draw(value) for axis, value in self.log_alpha.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        gated: dict[str, Tensor] = {}
        for axis, gates in self.gates().items():
            for place in self.groups.places(axis, "readers"):
                gated[place.name] = gated.get(place.name, place.parameter) * place.along(gates)
        return functional_call(self.module, gated, args, kwargs)

    def fix(self, removed: Mapping[str, Sequence[int]] | None = None) -> None:
        """Gates are drawn no more: those of `removed` are shut, the others stay where eval mode has them."""
        with torch.no_grad():
            self.fixed = {axis: expected(value) for axis, value in self.log_alpha.items()}
            for axis, positions in (removed or {}).items():
                self.fixed[axis][list(positions)] = 0.0

    def fold_(self) -> nn.Module:
        """The plain module, with the gates in its weights. Gates stand at 1 afterwards."""
        if not self.fixed:
            self.fix()
        for axis, gates in self.fixed.items():
            self.groups.scale_(axis, gates, "readers")
        self.fixed = {axis: torch.ones_like(gates) for axis, gates in self.fixed.items()}
        return self.module


class L0Gates:
    """Louizos et al. 2018, "Learning Sparse Neural Networks through L0 Regularization", arXiv:1712.01312.

    The penalty of an axis is price × the expected share of open positions (eq. 12). The price rises while more are open
    than the schedule says and falls while fewer are: the constraint of Wang et al. 2020, "Structured Pruning of Large
    Language Models", arXiv:1910.04732, § 4, by dual ascent, with `strength` as its rate. The gates have an Adam of
    their own (Kingma & Ba 2015), so that the network's may be any.
    """

    def __init__(
        self, gated: Gated, counts: Mapping[str, int], strength: float = 1.0, schedule: str | Schedule = "linear"
    ) -> None:
        unknown = sorted(set(counts) - set(gated.log_alpha))
        if unknown:
            raise UsageError(f"there are no gates on axis {unknown[0]!r}; there are {', '.join(gated.log_alpha)}")
        self.gated, self.strength, self.schedule = gated, check_strength(strength), schedule_of(schedule)
        self.goal = {axis: 1 - counts.get(axis, 0) / n for axis, n in gated.groups.sizes.items()}
        self.price = dict.fromkeys(gated.log_alpha, 0.0)
        self.moments = {axis: torch.zeros(2, len(value)) for axis, value in gated.log_alpha.items()}

    def penalty(self, step: int, steps: int) -> Tensor | None:
        shares = {axis: probability(value).mean() for axis, value in self.gated.log_alpha.items()}
        return torch.stack([self.price[axis] * share for axis, share in shares.items()]).sum()

    def after_step(self, step: int, steps: int) -> None:
        for axis, value in self.gated.log_alpha.items():
            self._adam(axis, value, step + 1)
            open_ = float(probability(value.detach()).mean())
            goal = 1 - (1 - self.goal[axis]) * self.schedule((step + 1) / steps)
            self.price[axis] = max(0.0, self.price[axis] + self.strength * PRICE_RATE * (open_ - goal))

    def _adam(self, axis: str, value: Tensor, count: int) -> None:
        """One step with β = (0.9, 0.99); left out where the gradient is missing or not finite."""
        gradient, value.grad = value.grad, None
        if gradient is None or not bool(torch.isfinite(gradient).all()):
            return
        first, second = self.moments[axis]
        first.mul_(0.9).add_(0.1 * gradient)
        second.mul_(0.99).add_(0.01 * gradient.square())
        with torch.no_grad():
            value -= RATE * (first / (1 - 0.9**count)) / ((second / (1 - 0.99**count)).sqrt() + 1e-8)

    def scores(self) -> Mapping[str, Tensor]:
        """The probability that a gate is open."""
        return {axis: probability(value.detach().double()) for axis, value in self.gated.log_alpha.items()}

    def settle(self, removed: Mapping[str, Sequence[int]]) -> None:
        self.gated.fix(removed)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {f"price.{axis}": price for axis, price in self.price.items()}
        state |= {f"log_alpha.{axis}": v.detach().clone() for axis, v in self.gated.log_alpha.items()}
        return state | {f"moments.{axis}": value.clone() for axis, value in self.moments.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for axis, value in self.gated.log_alpha.items():
                value.copy_(state[f"log_alpha.{axis}"])
                self.moments[axis] = state[f"moments.{axis}"].clone()
                self.price[axis] = float(state[f"price.{axis}"])
