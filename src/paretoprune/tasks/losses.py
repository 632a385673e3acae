"""The task's loss over a set, the recovery ratio, and the generalisation gap."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from paretoprune.core.measurement import Measurement
from paretoprune.core.outputs import main_output
from paretoprune.core.protocols import Task
from paretoprune.tasks import classification
from paretoprune.tasks.confusion import not_classes
from paretoprune.tasks.evaluate import Z_95, wilson

Values = NDArray[np.float64]
NO_INTERVAL = "no interval: the task gives one loss per batch"


class Losses:
    """Watches a pass over batches: the mean of the task's loss, each batch weighted by its samples.

    Cross-entropy is also kept per sample, which gives an interval (normal approximation).
    """

    def __init__(self, task: Task) -> None:
        self.why = ""
        self._task = task
        self._per_sample = task.loss is classification.loss
        self._values: list[Values] = []
        self._weights: list[int] = []

    def __call__(self, inputs: Any, output: Any, labels: Any, scores: Any) -> None:
        del inputs
        if self.why or not len(scores):
            return
        if self._per_sample and (why := not_classes(output, labels)):
            self.why = why
            return
        values = self._of(output, labels)
        if not np.isfinite(values).all():
            self.why = "the loss is not finite"
            return
        self._values.append(values)
        self._weights.append(len(scores))

    def _of(self, output: Any, labels: Any) -> Values:
        if not self._per_sample:
            return np.array([float(self._task.loss(output, labels))])
        logits = main_output(output).detach().cpu().double()
        given = torch.as_tensor(labels).cpu().long()
        result: Values = functional.cross_entropy(logits, given, reduction="none").numpy()
        return result

    @property
    def per_sample(self) -> Values | None:
        """(samples,), or None where the task gives one loss per batch."""
        return np.concatenate(self._values) if self._per_sample and self._values and not self.why else None

    def figures(self) -> dict[str, Measurement]:
        if self.why or not self._values:
            return {}
        samples = sum(self._weights)
        if not self._per_sample:
            mean = float(np.dot(np.concatenate(self._values), self._weights) / samples)
            return {"loss": Measurement(mean, mean, mean, samples, "loss", note=NO_INTERVAL)}
        values = np.concatenate(self._values)
        mean = float(values.mean())
        half = Z_95 * float(values.std(ddof=1)) / math.sqrt(samples) if samples > 1 else 0.0
        return {"loss": Measurement(mean, max(0.0, mean - half), mean + half, samples, "loss")}


def recovery_ratio(original: Measurement, pruned: Measurement, pairs: tuple[Values, Values] | None) -> Measurement:
    """The original's loss over the pruned network's: 1 is fully recovered. Both must be above 0.

    `pairs`: their losses on the same samples, each (samples,), which give the interval of a ratio of paired means
    (Cochran, "Sampling techniques", 1977, eq. 2.46); without them it is that of two independent losses, which is wider.
    """
    ratio = original.value / pruned.value
    if pairs is not None and len(pairs[0]) == len(pairs[1]) > 1:
        residual = pairs[0] - ratio * pairs[1]
        half = Z_95 * float(residual.std(ddof=1)) / math.sqrt(len(residual)) / pruned.value
        return Measurement(ratio, max(0.0, ratio - half), ratio + half, pruned.runs, "x")
    high = original.high / (pruned.low if pruned.low > 0 else pruned.value)
    return Measurement(ratio, original.low / pruned.high, high, pruned.runs, "x")


def generalisation_gap(train: Values, held_out: Values) -> Measurement:
    """Mean score on training samples minus that on as many held-out ones (unit "share"), both (samples,), 0 to 1.

    Interval of a difference of two shares from their Wilson intervals (Newcombe 1998, method 10).
    """
    count = min(len(train), len(held_out))
    p, q = float(train[:count].mean()), float(held_out[:count].mean())
    (p_low, p_high), (q_low, q_high) = wilson(p, count), wilson(q, count)
    below, above = math.hypot(p - p_low, q_high - q), math.hypot(p_high - p, q - q_low)
    note = f"{count} samples of each"
    return Measurement(p - q, max(-1.0, p - q - below), min(1.0, p - q + above), count, "share", note=note)


class FirstScores:
    """Watches a pass over batches: the task's score of the first samples."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._found: list[Values] = []

    def __call__(self, inputs: Any, output: Any, labels: Any, scores: Any) -> None:
        del inputs, output, labels
        if sum(map(len, self._found)) < self._samples:
            self._found.append(scores.detach().cpu().double().numpy())

    @property
    def scores(self) -> Values:
        """(samples,), at most as many as asked for."""
        return np.concatenate(self._found)[: self._samples] if self._found else np.empty(0)
