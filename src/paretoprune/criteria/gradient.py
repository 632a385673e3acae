"""Importance by how steep the loss is along the weights that make a position."""

from __future__ import annotations

from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import Need, View
from paretoprune.criteria.needing import needed


class Gradient:
    """The L2 norm of the gradient by a position's weights, without the weights themselves.

    The sensitivity of Karnin 1990, "A simple procedure for pruning back-propagation trained neural networks", at the
    trained weights alone. `Taylor` is the same with the weights.
    """

    name = "gradient"
    members: Role = "out"
    needs: frozenset[Need] = frozenset({"gradients"})
    remove: Literal["low", "high"] = "low"
    comparable = False

    def score(self, view: View) -> torch.Tensor:
        norm: torch.Tensor = torch.linalg.vector_norm(needed(view.grad, self.name, "gradients"), dim=1)
        return norm
