"""Importance by where training would move the weights: away from zero, or towards it."""

from __future__ import annotations

from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import Need, View
from paretoprune.criteria.needing import needed


class Movement:
    """-Σ w g over the weights that make a position, averaged over batches; negative where they shrink.

    Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", section 4, summed over a position as in
    Lagunas et al. 2021, "Block Pruning For Faster Transformers". It accumulates over training there; on calibration
    batches at fixed weights it is one step's worth.
    """

    name = "movement"
    members: Role = "out"
    needs: frozenset[Need] = frozenset({"gradients"})
    remove: Literal["low", "high"] = "low"
    comparable = False

    def score(self, view: View) -> torch.Tensor:
        return -(view.weight * needed(view.grad, self.name, "gradients")).sum(dim=1)
