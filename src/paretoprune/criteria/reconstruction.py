"""Importance by what is lost even after the best repair."""

from __future__ import annotations

from typing import Literal

import torch

from paretoprune.core.axis import Role
from paretoprune.core.protocols import Need, View
from paretoprune.criteria.needing import needed


class Reconstruction:
    """What a position's removal adds to the least-squares error, when positions go in the order of elimination.

    The optimal brain surgeon on the layer's own outputs: Hassibi & Stork 1993; Frantar & Alistarh 2022, "Optimal Brain
    Compression", for the columns of a position. The share is of the outputs' energy, the mean over what sums over
    the axis; the sum over removed positions is the error that reconstruction is left with.
    """

    name = "reconstruction"
    members: Role = "in"
    needs: frozenset[Need] = frozenset({"elimination"})
    remove: Literal["low", "high"] = "low"
    comparable = True

    def score(self, view: View) -> torch.Tensor:
        return needed(view.losses, self.name, "elimination")
