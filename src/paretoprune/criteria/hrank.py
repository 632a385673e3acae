"""Importance by how much a position's activation tells: the rank of its maps."""

from __future__ import annotations

from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import Need, View
from paretoprune.criteria.needing import needed

SAMPLES = 64
"""Ranks hardly vary between images (Lin et al. 2020)."""


class MapRank:
    """The mean over samples of the rank of a position's (rows, columns) map.

    Lin et al. 2020, "HRank: Filter Pruning using High-Rank Feature Map", section 3. A map is (height, width) of a
    channel, (head size, tokens) of a head; where an activation is one number, the rank is 1 unless it is 0, so that the
    score is the share of samples for which the unit is not silent.
    """

    name = "hrank"
    members: Role = "in"
    needs: frozenset[Need] = frozenset({"activations"})
    remove: Literal["low", "high"] = "low"
    comparable = False

    def score(self, view: View) -> torch.Tensor:
        maps = needed(view.activations, self.name, "activations")[:, :SAMPLES]
        ranks: torch.Tensor = torch.linalg.matrix_rank(maps)
        return ranks.to(maps.dtype).mean(dim=1)
