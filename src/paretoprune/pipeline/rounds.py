"""How far the next round of pruning goes: the adjusting step of the classic loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

UP, DOWN = 1.5, 0.5
"""At most and at least so much of the amount of the round before."""
PACE = 2.0
"""What one round saved, compared with the rounds before, counts at most twice and at least half."""
SLOWEST, FASTEST = 1 / 8, 4.0
"""Bounds of the amount, in planned rounds. Below the slowest, the drop limit binds."""


@dataclass(frozen=True)
class Round:
    """One round: what was tried, what came of it, and what follows.

    `way`: share of the way to the target, 0 to 1, after this round. `amount`: how much of the planned time it took, in
    planned rounds. `accuracy` is a share of the validation set, `drop` what was lost since the original, `lost` since
    the last accepted round. `macs` of one sample. `figures` of the target if one was given (latency_ms, energy_mj;
    one that was not measured is called "energy_mj (estimated)").
    `loss`: mean training loss of the last steps. `accepted`: within the drop limit; otherwise it was taken back.
    `factor`: by which the next amount changes.
    """

    number: int
    way: float
    amount: float
    widths: Mapping[str, int]
    accuracy: float
    drop: float
    lost: float
    macs: int
    loss: float
    accepted: bool
    factor: float
    figures: Mapping[str, float] = field(default_factory=dict)


def pace(saved: Mapping[str, float], before: Mapping[str, float]) -> float:
    """How strongly the costs fell: mean over the costs of (saved per amount now / on average before), ½ to 2.

    1 where nothing is known of the rounds before.
    """
    ratios = [saved[k] / before[k] for k in saved if k in before and before[k] > 0]
    return min(PACE, max(1 / PACE, sum(ratios) / len(ratios))) if ratios else 1.0


def adjusting(lost: float, room: float, share: float, pace: float, noise: float) -> float:
    """The factor for the next amount, ½ to 1.5.

    `room`: drop that was left before the round. `share`: the part of the way that was left which the round covered, so
    that room × share × pace is what it was allowed to lose. What was lost is counted beyond `noise`, one standard
    error: a round that lost no more than that may be followed by a larger one.
    """
    excess = lost - noise
    if excess <= 0:
        return UP
    return min(UP, max(DOWN, max(0.0, room) * share * pace / excess))


def noise_of(accuracy: float, samples: int) -> float:
    """One standard error of a share of `samples`; that of one wrong sample where the share is 0 or 1."""
    return max(math.sqrt(max(0.0, accuracy * (1 - accuracy)) / samples), 1 / samples)
