"""Importance by the first-order change of the loss."""

from __future__ import annotations

from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import Need, View
from paretoprune.criteria.needing import needed


class Taylor:
    """(sum_i w_i g_i)^2 over a position.

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", eq. 8.
    Over the weights that sum over the axis this is the squared gradient of a gate set on the position.
    """

    name = "taylor"
    members: Role = "in"
    needs: frozenset[Need] = frozenset({"gradients"})
    remove: Literal["low", "high"] = "low"
    comparable = True

    def score(self, view: View) -> torch.Tensor:
        return (view.weight * needed(view.grad, self.name, "gradients")).sum(dim=1).square()


class TaylorGate:
    """The mean over samples of |dL/dgate|: first-order changes of different samples do not cancel.

    Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", eq. 7 and 8.
    """

    name = "taylor-gate"
    members: Role = "in"
    needs: frozenset[Need] = frozenset({"gates"})
    remove: Literal["low", "high"] = "low"
    comparable = True

    def score(self, view: View) -> torch.Tensor:
        return needed(view.gates, self.name, "gates").abs().mean(dim=1)
