"""Importance by the factor that a batch norm gives a position."""

from __future__ import annotations

from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import Need, View
from paretoprune.criteria.needing import needed


class BatchNormScale:
    """|γ|, summed over the batch norms on the axis.

    Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", section 3. The scales of all
    layers are compared as they are there. An axis without a batch norm is refused.
    """

    name = "bn-scale"
    members: Role = "each"
    needs: frozenset[Need] = frozenset({"scales"})
    remove: Literal["low", "high"] = "low"
    comparable = True

    def score(self, view: View) -> torch.Tensor:
        return needed(view.scale, self.name, "scales").abs().sum(dim=1)
