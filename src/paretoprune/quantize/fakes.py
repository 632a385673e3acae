"""Fake quantizers: floating-point values on a grid forward, and (almost) the identity backward."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from paretoprune.core.grid import Grid


def straight(value: Tensor, onto: Tensor) -> Tensor:
    """`onto` forward, the identity backward: the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432)."""
    return value + (onto - value).detach()


class FakeActivation(nn.Module):
    """One scale, which is learned (Esser et al. 2020, LSQ, arXiv:1902.08153, eq. 2 and 3); the zero point stays.

    Values outside the grid get no gradient (Jacob et al. 2018, arXiv:1712.05877).
    """

    def __init__(self, grid: Grid):
        super().__init__()
        self.name, self.zero_point, self.low, self.high = grid.name, grid.zero_point, grid.low, grid.high
        self.scale = nn.Parameter(torch.tensor(float(grid.scale)))
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return x
        damp = 1 / math.sqrt(max(1, x.numel() // max(1, x.shape[0] if x.ndim else 1)) * self.high)
        scale = straight(self.scale * damp, self.scale)  # its gradient is a sum over many values
        inside = torch.clamp(x / scale, self.low - self.zero_point, self.high - self.zero_point)
        return straight(inside, torch.round(inside)) * scale


class FakeWeight(nn.Module):
    """One scale per output channel: the channel's largest weight at the end of the grid."""

    def __init__(self, grid: Grid):
        super().__init__()
        self.axis, self.high = grid.axis, grid.high
        self.on = True

    def whole(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(whole numbers, scale of the channels (C,) or of all ())."""
        scale = self._per_channel(weight.detach().abs(), torch.amax) / self.high
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return torch.clamp(torch.round(weight / self._along(scale, weight)), -self.high, self.high), scale

    def forward(self, weight: Tensor) -> Tensor:
        if not self.on:
            return weight
        whole, scale = self.whole(weight)
        return straight(weight, whole * self._along(scale, weight))

    def _per_channel(self, values: Tensor, reduce: object) -> Tensor:
        rest = [i for i in range(values.ndim) if i != self.axis]
        result: Tensor = reduce(values, dim=rest)  # type: ignore[operator]
        return result

    def _along(self, scale: Tensor, weight: Tensor) -> Tensor:
        if self.axis is None:
            return scale
        shape = [1] * weight.ndim
        shape[self.axis] = -1
        return scale.reshape(shape)


class FakeBias(nn.Module):
    """Whole numbers of the input's scale times the weight's: it joins the sums of products."""

    def __init__(self, entering: FakeActivation, weight: FakeWeight):
        super().__init__()
        self.entering, self.weight = entering, weight

    def forward(self, bias: Tensor, weight: Tensor) -> Tensor:
        if not (self.entering.on and self.weight.on):
            return bias
        scale = self.entering.scale.detach() * self.weight.whole(weight)[1]
        return straight(bias, torch.round(bias / scale) * scale)


class BinaryWeight(FakeWeight):
    """sign(w) times the mean of |w| over the channel (Rastegari et al. 2016, arXiv:1603.05279, eq. 6).

    In a file of 8 bits the signs stand at the two ends of the grid, so that nothing is lost.
    """

    def whole(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = self._per_channel(weight.detach().abs(), torch.mean) / self.high
        return torch.where(weight >= 0, self.high, -self.high).to(weight), scale

    def forward(self, weight: Tensor) -> Tensor:
        if not self.on:
            return weight
        whole, scale = self.whole(weight)
        # Beyond one, in units of the mean, a sign does not come back: no gradient (Courbariaux et al. 2016,
        # arXiv:1602.02830, eq. 4).
        reach = self._along(scale, weight) * self.high
        return straight(torch.clamp(weight, -REACH * reach, REACH * reach), whole * self._along(scale, weight))


REACH = 3.0
"""How many means a weight may be from zero and still be trained: half of a normal channel lies beyond 0.85."""
