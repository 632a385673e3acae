"""No importance at all: what every criterion has to beat."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import Need, View


class Random:
    """Uniform numbers from `seed` and the axis's id, so that an axis has its order whatever other axes there are.

    A strong baseline once networks are tuned: Mittal et al. 2018, "Recovering from Random Pruning".
    """

    name = "random"
    members: Role = "out"
    needs: frozenset[Need] = frozenset()
    remove: Literal["low", "high"] = "low"
    comparable = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def score(self, view: View) -> torch.Tensor:
        digest = hashlib.sha256(f"{self.seed}:{view.axis}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.rand(len(view.weight), generator=generator).to(view.weight)
