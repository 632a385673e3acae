"""Importance by the size of the weights that make a position."""

from __future__ import annotations

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import View


class Magnitude:
    """The L1 or L2 norm of a position's filters (Li et al. 2017, "Pruning Filters for Efficient ConvNets")."""

    members: Role = "out"
    needs_gradients = False

    def __init__(self, order: int = 2) -> None:
        self.order = order
        self.name = f"l{order}"

    def score(self, view: View) -> torch.Tensor:
        norm: torch.Tensor = torch.linalg.vector_norm(view.weight, self.order, dim=1)
        return norm
