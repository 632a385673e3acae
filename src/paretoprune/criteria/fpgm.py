"""Importance by how far a position's filters are from all others: what is near the middle can be replaced."""

from __future__ import annotations

from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import Need, View


class GeometricMedian:
    """The sum of distances to the other positions' filters; the geometric median has the least.

    He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
    section 3.3.
    """

    name = "fpgm"
    members: Role = "out"
    needs: frozenset[Need] = frozenset()
    remove: Literal["low", "high"] = "low"
    comparable = False

    def score(self, view: View) -> torch.Tensor:
        # Not by the matrix product, which cancels: equal filters must come out equal.
        return torch.cdist(view.weight, view.weight, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
