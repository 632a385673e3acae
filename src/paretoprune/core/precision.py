"""The precisions of exported files, in one table; a target offers some of them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from paretoprune.core.errors import PlanError, UsageError


@dataclass(frozen=True)
class Numbers:
    """How a file holds its numbers.

    `says`: in words. `calibrated`: it needs batches to learn the ranges of activations. `min_snr_db`: a file that keeps
    less of the fp32 file's output is broken; above it the task's metric judges.
    """

    says: str
    calibrated: bool = False
    min_snr_db: float = float("inf")


PRECISIONS: Mapping[str, Numbers] = {
    "fp32": Numbers("single precision"),
    "int8": Numbers("weights and activations in 8 bits, ranges of activations from calibration", True, 5.0),
    "int8-dynamic": Numbers("as int8, but ranges of activations are taken from each input", False, 5.0),
    "int8-weights": Numbers("weights in 8 bits, activations in single precision", False, 15.0),
    "fp16": Numbers("weights in half precision, computed in single precision", False, 40.0),
    "bf16": Numbers("stored in single precision, computed in bfloat16", False, 20.0),
}
"""Beside them there is MIXED, which names a way to choose `bits`, not numbers of its own."""

MIXED = "mixed"
"""int8 with the most sensitive layers left in fp32."""

CARRIER: Mapping[str, str] = {MIXED: "int8"}
"""The precision of the file by the precision asked for, where it is another one."""

BY_LAYER = ("fp32", "int8-weights", "fp16")
"""What single layers may have inside a file of another precision."""


def carrier(precision: str) -> str:
    return CARRIER.get(precision, precision)


def check_offered(precision: str, offered: Collection[str], target: str) -> None:
    """Raises UsageError that lists what the target offers."""
    if carrier(precision) in offered:
        return
    near = difflib.get_close_matches(precision, [*offered, *CARRIER], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(
        f"precision {precision!r} is not offered by {target}; it has "
        f"{', '.join([*offered, *(m for m, c in CARRIER.items() if c in offered)])}{hint}"
    )


def by_layer(names: Iterable[str], bits: Mapping[str, str], precision: str) -> dict[str, str]:
    """By weight name: its precision in a file of `precision`. The first pattern that fits counts.

    Raises PlanError for a name or pattern that fits no weight, with near ones, and UsageError for a precision that a
    single layer cannot have.
    """
    known, allowed = list(names), dict.fromkeys((*BY_LAYER, precision))
    for pattern, wanted in bits.items():
        if wanted not in allowed:
            raise UsageError(
                f"bits: {pattern!r} is to be {wanted!r}; in a file of {precision} a layer may be {', '.join(allowed)}"
            )
        if not any(fnmatchcase(name, pattern) for name in known):
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3) or known[:3]
            raise PlanError(
                f"bits: {pattern!r} is no weight of a layer, and as a pattern it fits none; "
                f"near it: {', '.join(near) or 'none, this file has no such layer'}"
            )
    return {n: next((p for pattern, p in bits.items() if fnmatchcase(n, pattern)), precision) for n in known}
