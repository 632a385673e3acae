"""Single weights and blocks of them that are zero while training goes on: held, brought in, or moved."""

from __future__ import annotations

from paretoprune.recover.zeros.gradual import Gradual
from paretoprune.recover.zeros.masked import Masked
from paretoprune.recover.zeros.rigl import RigL, Units

__all__ = ["Gradual", "Masked", "RigL", "Units"]
