"""The criteria by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast, get_args

from paretoprune.core.errors import UsageError
from paretoprune.core.plugin import look_up
from paretoprune.core.protocols import Criterion, Need
from paretoprune.criteria.activation import MeanActivation
from paretoprune.criteria.batchnorm import BatchNormScale
from paretoprune.criteria.entropy import ActivationEntropy
from paretoprune.criteria.fisher import Fisher
from paretoprune.criteria.fpgm import GeometricMedian
from paretoprune.criteria.gradient import Gradient
from paretoprune.criteria.hrank import MapRank
from paretoprune.criteria.lamp import Lamp
from paretoprune.criteria.magnitude import Magnitude
from paretoprune.criteria.movement import Movement
from paretoprune.criteria.obd import BrainDamage
from paretoprune.criteria.obs import BrainSurgeon
from paretoprune.criteria.random import Random
from paretoprune.criteria.reconstruction import Reconstruction
from paretoprune.criteria.taylor import Taylor, TaylorGate
from paretoprune.criteria.wanda import Wanda

CRITERIA: Mapping[str, Criterion] = {
    "magnitude": Magnitude(2),
    "l1": Magnitude(1),
    "l2": Magnitude(2),
    "random": Random(),
    "bn-scale": BatchNormScale(),
    "fpgm": GeometricMedian(),
    "lamp": Lamp(),
    "gradient": Gradient(),
    "taylor": Taylor(),
    "taylor-gate": TaylorGate(),
    "movement": Movement(),
    "fisher": Fisher(),
    "obd": BrainDamage(),
    "obs": BrainSurgeon(),
    "hrank": MapRank(),
    "entropy": ActivationEntropy(),
    "mean-activation": MeanActivation(),
    "wanda": Wanda(),
    "reconstruction": Reconstruction(),
}
NEEDS = frozenset(get_args(Need))
_PARTS = ("name", "members", "needs", "remove", "comparable", "score")


def criterion_of(given: str | Criterion) -> Criterion:
    """A criterion by name, the object itself, or "pkg.mod:Class" (made without arguments). Raises UsageError."""
    found = look_up("criterion", given, CRITERIA)
    if isinstance(found, type):
        found = found()
    missing = [a for a in _PARTS if not hasattr(found, a)]
    if missing:
        raise UsageError(f"criterion {given!r} has no {', '.join(missing)}: see paretoprune.core.protocols.Criterion")
    if found.remove not in ("low", "high"):
        raise UsageError(f"criterion {found.name!r} has remove={found.remove!r}: give 'low' or 'high'")
    unknown = set(found.needs) - NEEDS
    if unknown:
        named = ", ".join(sorted(map(repr, unknown)))
        raise UsageError(f"criterion {found.name!r} needs {named}; there are {', '.join(sorted(NEEDS))}")
    return cast(Criterion, found)
