"""Importance by size relative to all that would still be there."""

from __future__ import annotations

from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import Need, View


class Lamp:
    """‖w_p‖² / Σ_q ‖w_q‖² over the positions q that are at least as large as p.

    Lee et al. 2021, "Layer-Adaptive Sparsity for the Magnitude-based Pruning", section 3, which scores single weights
    of a layer: that is this score on a view with one weight per row, `View(weight.reshape(-1, 1))`. With a position per
    row the same formula stands over squared norms of positions. The largest has 1, so no axis is emptied by a global
    threshold below it.
    """

    name = "lamp"
    members: Role = "out"
    needs: frozenset[Need] = frozenset()
    remove: Literal["low", "high"] = "low"
    comparable = True

    def score(self, view: View) -> torch.Tensor:
        energy = view.weight.double().square().sum(dim=1)
        values, order = energy.sort()
        remaining = values.flip(0).cumsum(0).flip(0)
        # Equal positions have the same denominator, whatever their order: that of the first of them.
        first = torch.searchsorted(values, values, right=False)
        share = values / remaining[first].clamp_min(torch.finfo(torch.float64).tiny)
        return torch.empty_like(share).scatter_(0, order, share).to(view.weight.dtype)
