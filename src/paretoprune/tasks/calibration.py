"""How far stated confidence is from the share of right answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paretoprune.core.measurement import Measurement
from paretoprune.core.outputs import main_output
from paretoprune.tasks.confusion import not_classes

BINS = 15
DRAWS = 400
Values = NDArray[np.float64]


def expected_calibration_error(confidence: Values, hit: Values, bins: int = BINS) -> float:
    """Sum over bins of (share of samples) × |share that is right − mean confidence|, 0 to 1.

    Guo et al., "On calibration of modern neural networks" (ICML 2017), eq. 3: `bins` bins of equal width, the m-th
    holds confidences in ((m − 1) / bins, m / bins]. `confidence` and `hit` (0 or 1) have shape (samples,).
    """
    place = _bins(confidence, bins)
    gaps = np.bincount(place, weights=hit - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _bins(confidence: Values, bins: int) -> NDArray[np.int64]:
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def calibration_figure(confidence: Values, hit: Values, bins: int = BINS, seed: int = 0) -> Measurement:
    """The error with a 95 % interval (basic bootstrap over samples: the plain one keeps the estimate's upward bias).

    Drawn with Poisson weights, the sum of a bin varies by the sum of its squares; it is taken as normal.
    """
    value, count = expected_calibration_error(confidence, hit, bins), len(confidence)
    place, gap = _bins(confidence, bins), hit - confidence
    sums, squares = (np.bincount(place, weights=w, minlength=bins) for w in (gap, gap**2))
    noise = np.random.default_rng(seed).normal(size=(DRAWS, bins))
    drawn = np.abs(sums + noise * np.sqrt(squares)).sum(axis=1) / count
    low, high = 2 * value - np.quantile(drawn, [0.975, 0.025])
    return Measurement(
        value, max(0.0, min(value, float(low))), min(1.0, max(value, float(high))), count, "share", note=f"{bins} bins"
    )


class Calibration:
    """Watches a pass over batches: the largest softmax of each sample, and whether it was right."""

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self.why = ""
        self._confidence: list[Values] = []
        self._hit: list[Values] = []

    def __call__(self, inputs: Any, output: Any, labels: Any, scores: Any) -> None:
        del inputs, scores
        self.why = self.why or not_classes(output, labels)
        if self.why:
            return
        logits = main_output(output).detach().cpu().double()
        if not bool(logits.isfinite().all()):
            self.why = "some logits are not finite"
            return
        confidence, taken = logits.softmax(dim=1).max(dim=1)
        self._confidence.append(confidence.numpy())
        self._hit.append((taken == torch.as_tensor(labels).cpu().long()).double().numpy())

    def figures(self) -> dict[str, Measurement]:
        if self.why or not self._hit:
            return {}
        found = calibration_figure(np.concatenate(self._confidence), np.concatenate(self._hit), self.bins)
        return {"calibration_error": found}
