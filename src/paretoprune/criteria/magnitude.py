"""Importance by the size of the weights that make a position."""

from __future__ import annotations

import math
from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.errors import UsageError
from paretoprune.core.protocols import Need, View


class Magnitude:
    """The Lp norm of a position's filters.

    L1: Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1; L2: He et al. 2018, "Soft Filter
    Pruning", eq. 2, which gives the general p. `order` is any number above 0, or infinity for the largest weight.
    """

    members: Role = "out"
    needs: frozenset[Need] = frozenset()
    remove: Literal["low", "high"] = "low"
    comparable = False

    def __init__(self, order: float = 2) -> None:
        if not isinstance(order, (int, float)) or math.isnan(order) or order <= 0:
            raise UsageError(f"Magnitude(order={order!r}): give a number above 0, for instance 1 or 2")
        self.order = float(order)
        self.name = f"l{order:g}"

    def score(self, view: View) -> torch.Tensor:
        norm: torch.Tensor = torch.linalg.vector_norm(view.weight, self.order, dim=1)
        return norm
