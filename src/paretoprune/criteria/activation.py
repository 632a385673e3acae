"""Importance by how large a position's activation is."""

from __future__ import annotations

from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import Need, View
from paretoprune.criteria.needing import needed


class MeanActivation:
    """The mean of |a| over samples and places.

    Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", section 2.2; the
    absolute value makes it right where what enters is not the output of a ReLU.
    """

    name = "mean-activation"
    members: Role = "in"
    needs: frozenset[Need] = frozenset({"activations"})
    remove: Literal["low", "high"] = "low"
    comparable = False

    def score(self, view: View) -> torch.Tensor:
        return needed(view.activations, self.name, "activations").abs().mean(dim=(1, 2, 3))
