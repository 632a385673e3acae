"""Importance by the first-order change of the loss."""

from __future__ import annotations

import torch

from paretoprune.core.axis import Role
from paretoprune.core.errors import UsageError
from paretoprune.core.protocols import View


class Taylor:
    """(sum_i w_i g_i)^2 over a position.

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", eq. 8.
    Over the weights that sum over the axis this is the squared gradient of a gate set on the position.
    """

    name = "taylor"
    members: Role = "in"
    needs_gradients = True

    def score(self, view: View) -> torch.Tensor:
        if view.grad is None:
            raise UsageError("criterion 'taylor' needs gradients: give calibration batches with labels")
        return (view.weight * view.grad).sum(dim=1).square()
