"""Whether an exported file computes what the network computes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretoprune.core.errors import ExportMismatchError

TOLERANCE = 1e-3
"""Largest error of an fp32 file, as a share of the spread (largest minus smallest) of the network's output."""

ROUNDING = 1e-5
"""Share of the largest absolute output that single precision may lose on top: outputs far from zero, tiny spread."""

INTEGER_DISAGREEMENT = 0.01
"""Share of integer or boolean outputs that may differ, for instance an argmax between near-equal values."""

MIN_HALF_SNR_DB = 20.0
"""A bf16 or fp16 file whose error is more than a tenth of its output's spread is no copy of the network."""

MIN_BLIND_SNR_DB = 10.0
"""The same where there are no labels to ask. White noise of that power on the outputs costs a ResNet-20 on CIFAR-10 3
points and SqueezeNet on ImageNet 8; at 5 dB they are 9 and 20, past MAX_DROP (docs/decisions/0023)."""

MAX_DROP = 0.1
"""A reduced precision that surely loses more of the task's metric than this, against the same network, is broken."""

Outputs = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class Difference:
    """`error` and `allowed` in the output's own unit; `share` of the output's spread."""

    error: float
    allowed: float
    share: float

    @property
    def within(self) -> bool:
        return self.error <= self.allowed


def difference(expected: NDArray[Any], given: NDArray[Any]) -> Difference:
    """Largest absolute difference of two arrays of one shape. Not-a-number anywhere counts as infinite."""
    if expected.size == 0:
        return Difference(0.0, 0.0, 0.0)
    if not np.issubdtype(expected.dtype, np.floating):
        share = float(np.mean(expected != given))
        return Difference(share, INTEGER_DISAGREEMENT, share)
    a, b = expected.astype(np.float64), given.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        same = np.array_equal(a, b) and not np.isnan(a).any()
        return Difference(0.0 if same else float("inf"), 0.0, 0.0 if same else float("inf"))
    error, spread = float(np.abs(a - b).max()), float(np.ptp(a))
    return Difference(
        error, TOLERANCE * spread + ROUNDING * float(np.abs(a).max()), error / spread if spread else error
    )


def check_outputs(what: str, names: Sequence[str], expected: Outputs, given: Outputs) -> float:
    """Largest error as a share of what is allowed. Raises ExportMismatchError naming output, error and tolerance."""
    worst = 0.0
    if len(expected) != len(given):
        raise ExportMismatchError(f"{what}: {len(given)} outputs, the network has {len(expected)}; file rejected")
    for name, a, b in zip(names, expected, given, strict=True):
        check_shape(what, name, a, b)
        found = difference(a, b)
        if not found.within:
            raise ExportMismatchError(
                f"{what}: output {name!r} differs from the network by up to {found.error:.3g} "
                f"({found.share:.2%} of its spread); at most {found.allowed:.3g} is allowed, so the file is rejected"
            )
        worst = max(worst, found.error / found.allowed if found.error else 0.0)
    return worst


def check_half(what: str, names: Sequence[str], pairs: Sequence[tuple[Outputs, Outputs]]) -> None:
    """(expected, given) of several batches. Raises ExportMismatchError for other shapes, NaN and a low ratio."""
    for expected, given in pairs:
        if len(expected) != len(given):
            raise ExportMismatchError(f"{what}: {len(given)} outputs, the network has {len(expected)}; file rejected")
        for name, a, b in zip(names, expected, given, strict=True):
            check_shape(what, name, a, b)
            if np.isfinite(a).all() and not np.isfinite(b).all():
                raise ExportMismatchError(f"{what}: output {name!r} overflows; keep the network in fp32")
    ratio = snr_db([a for a, _ in pairs], [b for _, b in pairs])
    if ratio < MIN_HALF_SNR_DB:
        error = largest_error([a for a, _ in pairs], [b for _, b in pairs])
        raise ExportMismatchError(
            f"{what}: outputs differ by up to {error:.3g}, a signal-to-noise ratio of {ratio:.1f} dB; at least "
            f"{MIN_HALF_SNR_DB:g} dB is asked for, so the file is rejected"
        )


def check_shape(what: str, name: str, expected: NDArray[Any], given: NDArray[Any]) -> None:
    if expected.shape != given.shape:
        frozen = expected.shape[1:] == given.shape[1:]
        why = "; the batch size became a constant in the export" if frozen else ""
        raise ExportMismatchError(
            f"{what}: output {name!r} has shape {given.shape}, the network gives {expected.shape}{why}"
        )


def check_finite(what: str, names: Sequence[str], outputs: Outputs) -> None:
    for name, array in zip(names, outputs, strict=True):
        if np.issubdtype(array.dtype, np.floating):
            bad = int(np.isnan(array).sum())
            if bad:
                raise ExportMismatchError(
                    f"{what}: output {name!r} has {bad} NaN of {array.size} values; file rejected"
                )


def check_varies(what: str, outputs: Iterable[Outputs]) -> None:
    """Raises if no floating-point output depends on the input: then agreement proves nothing.

    `outputs` of several inputs. Integer outputs are not asked: a class may well be the same for a few inputs.
    """
    floating = [arrays for arrays in zip(*outputs, strict=True) if np.issubdtype(arrays[0].dtype, np.floating)]
    if not floating:
        return
    for arrays in floating:
        rows = [row for array in arrays for row in (array if array.ndim else array[None])]
        if any(row.shape != rows[0].shape or not np.array_equal(row, rows[0]) for row in rows[1:]):
            return
    raise ExportMismatchError(
        f"{what}: the network's output does not vary with its input, so agreement proves nothing. "
        "Give an example with realistic values, or check for a layer whose output is always zero"
    )


def snr_db(expected: Sequence[Outputs], given: Sequence[Outputs]) -> float:
    """Signal-to-noise ratio of the worst floating-point output over all batches, in decibels.

    Signal is the variance of the reference around its mean. inf for equal outputs.
    """
    worst = float("inf")
    for reference, other in zip(zip(*expected, strict=True), zip(*given, strict=True), strict=True):
        if not np.issubdtype(reference[0].dtype, np.floating):
            continue
        a = np.concatenate([np.ravel(x) for x in reference]).astype(np.float64)
        b = np.concatenate([np.ravel(x) for x in other]).astype(np.float64)
        signal, noise = float(np.var(a)), float(np.mean((a - b) ** 2))
        if noise == 0.0:
            continue
        worst = min(worst, 10 * float(np.log10(signal / noise)) if signal else -float("inf"))
    return worst


def largest_error(expected: Sequence[Outputs], given: Sequence[Outputs]) -> float:
    """Largest absolute difference over all batches and outputs."""
    pairs = ((a, b) for x, y in zip(expected, given, strict=True) for a, b in zip(x, y, strict=True))
    return max(float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))) for a, b in pairs)
