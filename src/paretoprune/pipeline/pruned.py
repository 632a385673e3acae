"""What a pruning returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from paretoprune.core.graph import Program
from paretoprune.core.plan import Plan


@dataclass(frozen=True)
class Pruned:
    """A pruned network.

    `model` is the user's own class where its forward is right at the new sizes, else the rewritten graph; `notes` says
    which and why. `kept`: parameter or buffer name -> per dimension the kept indices, or None for all.
    `macs` and `original_macs` are of one sample.
    """

    model: nn.Module
    plan: Plan
    kept: Mapping[str, Sequence[NDArray[np.int64] | None]] = field(repr=False)
    program: Program = field(repr=False)
    macs: int
    original_macs: int
    notes: tuple[str, ...] = ()
