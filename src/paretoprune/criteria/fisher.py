"""Importance by the empirical Fisher information of a gate on the position."""

from __future__ import annotations

from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import Need, View
from paretoprune.criteria.needing import needed


class Fisher:
    """½ E_n[(dL_n/dgate)²] over samples n: the second-order change of the loss, with its Fisher for the Hessian.

    Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", section 2.1. An axis that
    several layers sum over has one gate for all of them, as in Liu et al. 2021, "Group Fisher Pruning".
    """

    name = "fisher"
    members: Role = "in"
    needs: frozenset[Need] = frozenset({"gates"})
    remove: Literal["low", "high"] = "low"
    comparable = True

    def score(self, view: View) -> torch.Tensor:
        return needed(view.gates, self.name, "gates").square().mean(dim=1) / 2
