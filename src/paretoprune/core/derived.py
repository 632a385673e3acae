"""Figures that follow from others, measured or estimated as those are."""

from __future__ import annotations

import math
from collections.abc import Mapping

from paretoprune.core.measurement import Measurement, Status

DERIVED = ("power_w", "w_per_frame", "fps", "energy_per_correct_mj")


def with_derived(figures: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """The figures, and beside them what they imply; what cannot be had is left out. A frame is one inference.

    "fps": frames per second one after another, 1 / "wall_ms". "power_w": mean power while that is done, "energy_mj" /
    "wall_ms" (with a meter the idle power, "idle_w", comes on top). "w_per_frame": that power over that frame rate, in
    W per (frame/s). That is the energy of a frame in J, so it also tells what each frame per second of a slower camera
    costs. "energy_per_correct_mj": energy for each correct prediction, "energy_mj" / "accuracy".
    """
    found = {key: value for key, value in figures.items() if key not in DERIVED}
    wall, energy, accuracy = (figures.get(key) for key in ("wall_ms", "energy_mj", "accuracy"))
    new: dict[str, Measurement | None] = {}
    if wall is not None:
        new["fps"] = _over(Measurement.exact(1e3, "ms", wall.target, wall.note), wall, "1/s")
    if wall is not None and energy is not None:
        new["power_w"] = _over(energy, wall, "W")
    if energy is not None:
        new["w_per_frame"] = _over(energy, Measurement.exact(1e3, "mJ/J"), "W/(frame/s)")
    if energy is not None and accuracy is not None:
        new["energy_per_correct_mj"] = _over(energy, accuracy, "mJ")
    return found | {key: value for key, value in new.items() if value is not None}


def _over(a: Measurement, b: Measurement, unit: str) -> Measurement | None:
    """a / b; every value that the two intervals allow lies in its interval. None where b may be zero."""
    if not (b.value > 0 and b.low > 0 and math.isfinite(a.value)):
        return None
    status: Status = "estimated" if "estimated" in (a.status, b.status) else "measured"
    low, high = min(a.low / b.high, a.low / b.low), max(a.high / b.low, a.high / b.high)
    return Measurement(a.value / b.value, low, high, max(a.runs, b.runs), unit, status, a.target or b.target, a.note)
