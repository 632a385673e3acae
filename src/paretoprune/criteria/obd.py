"""Importance by the second-order change of the loss, one weight at a time."""

from __future__ import annotations

from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import Need, View
from paretoprune.criteria.needing import needed


class BrainDamage:
    """½ Σ_i h_ii w_i² over the weights that make a position.

    LeCun et al. 1990, "Optimal Brain Damage", section 2.2. The diagonal h_ii is the empirical Fisher's: the mean over
    batches of g_i². It is sharper the smaller the batches are.
    """

    name = "obd"
    members: Role = "out"
    needs: frozenset[Need] = frozenset({"gradients"})
    remove: Literal["low", "high"] = "low"
    comparable = True

    def score(self, view: View) -> torch.Tensor:
        return (view.weight * needed(view.grad, self.name, "gradients")).square().sum(dim=1) / 2
