"""Importance by how varied a position's activation is over samples."""

from __future__ import annotations

from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import Need, View
from paretoprune.criteria.needing import needed

BINS = 16


class ActivationEntropy:
    """Entropy in nats of the mean activation of a sample, over samples, in 16 equal bins of the position's own range.

    Luo & Wu 2017, "An Entropy-based Method for CNN Compression", section 3. Which end goes:
    docs/decisions/0010-criteria.md.
    """

    name = "entropy"
    members: Role = "in"
    needs: frozenset[Need] = frozenset({"activations"})
    comparable = False

    def __init__(self, remove: Literal["low", "high"] = "low") -> None:
        self.remove: Literal["low", "high"] = remove

    def score(self, view: View) -> torch.Tensor:
        means = needed(view.activations, self.name, "activations").mean(dim=(2, 3))
        low, high = means.amin(dim=1, keepdim=True), means.amax(dim=1, keepdim=True)
        share = (means - low) / (high - low).clamp_min(torch.finfo(means.dtype).tiny)
        bins = (share * BINS).long().clamp(0, BINS - 1)
        counts = torch.nn.functional.one_hot(bins, BINS).sum(dim=1).to(means.dtype)
        entropy: torch.Tensor = torch.special.entr(counts / means.shape[1]).sum(dim=1)
        return entropy
