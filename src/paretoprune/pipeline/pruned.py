"""What a pruning returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from paretoprune.core.graph import Program
from paretoprune.core.plan import Plan
from paretoprune.pipeline.blueprint import Blueprint


@dataclass(frozen=True)
class Pruned:
    """A pruned network.

    `model` is the user's own class where its forward is right at the new sizes, else the rewritten graph; `notes` says
    which and why. `kept`: parameter or buffer name -> per dimension the kept indices, or None for all; of a layer that
    became two thin ones, under the name that its weight had.
    `macs` and `original_macs` are of one sample. `blueprint`: how a fresh network of the class becomes this one; None
    where the class cannot hold the result.

    Files: `paretoprune.save` writes any result; `save_pretrained` writes a folder that `from_pretrained` of a
    transformers model loads without this package.
    """

    model: nn.Module
    plan: Plan
    kept: Mapping[str, Sequence[NDArray[np.int64] | None]] = field(repr=False)
    program: Program = field(repr=False)
    macs: int
    original_macs: int
    notes: tuple[str, ...] = ()
    blueprint: Blueprint | None = field(default=None, repr=False)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a folder that `from_pretrained` of the model's own class loads; for models of transformers.

        It was loaded and compared before this returns. Raises ModelError with the reason where the class's config
        cannot express the result; `paretoprune.save` writes any result.
        """
        from paretoprune.pipeline.pretrained import save_pretrained

        return save_pretrained(self, folder)
