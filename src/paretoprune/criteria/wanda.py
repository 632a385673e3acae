"""Importance by weights times what they are multiplied with."""

from __future__ import annotations

from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import Need, View
from paretoprune.criteria.needing import needed


class Wanda:
    """Σ |w| · ‖x‖ over all weights that read a position, ‖x‖ the root mean square of the input of each.

    Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models", eq. 1, summed over the weights
    of a position. On a view with one weight per row it is the paper's score of each weight.
    """

    name = "wanda"
    members: Role = "in"
    needs: frozenset[Need] = frozenset({"inputs"})
    remove: Literal["low", "high"] = "low"
    comparable = False

    def score(self, view: View) -> torch.Tensor:
        return (view.weight.abs() * needed(view.inputs, self.name, "inputs")).sum(dim=1)
