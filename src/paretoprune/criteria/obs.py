"""Importance by the second-order change of the loss when all other positions of the axis adapt."""

from __future__ import annotations

from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import Need, View
from paretoprune.criteria.needing import needed

DAMPING = 1e-3
"""λ as a share of the mean diagonal."""


class BrainSurgeon:
    """½ / [F⁻¹]_pp: what the loss gains when gate p goes from 1 to 0 and the other gates move to make up for it.

    Hassibi & Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon", eq. 5, with w_p = 1.
    F = E_n[g_n g_nᵀ] + λI is the empirical Fisher over the gates of the whole axis, a full block of (positions,
    positions), as Singh & Alistarh 2020, "WoodFisher", take it over weights. A block over the weights of one
    position alone would need no inverse: ½ wᵀFw, which is Taylor again. With few samples for many positions the inverse
    promises too much, so that scores of wide axes come out too low: they are not compared as they are.
    """

    name = "obs"
    members: Role = "in"
    needs: frozenset[Need] = frozenset({"gates"})
    remove: Literal["low", "high"] = "low"
    comparable = False

    def score(self, view: View) -> torch.Tensor:
        gates = needed(view.gates, self.name, "gates").double()
        fisher = gates @ gates.T / gates.shape[1]
        level = float(fisher.diagonal().mean()) * DAMPING
        if level <= torch.finfo(torch.float64).tiny:
            return torch.zeros(len(gates), dtype=gates.dtype, device=gates.device)
        fisher.diagonal().add_(level)
        return 0.5 / torch.cholesky_inverse(torch.linalg.cholesky(fisher)).diagonal()
