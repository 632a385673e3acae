"""Which class was taken for which: the counts, and precision, recall and F1 from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from paretoprune.core.errors import DataError
from paretoprune.core.measurement import Measurement
from paretoprune.core.outputs import main_output
from paretoprune.tasks import classification
from paretoprune.tasks.evaluate import wilson

Counts = NDArray[np.int64]
DRAWS = 400
"""Of the bootstrap of the counts."""
MACRO = ("precision", "recall", "f1")


def class_counts(logits: Any, labels: Any) -> Counts:
    """(classes, classes + 1): samples by label and by largest logit; the last column holds rows with NaN."""
    scores = main_output(logits).detach().cpu()
    given = torch.as_tensor(labels).cpu().long()
    classes = scores.shape[1]
    taken = torch.where(scores.isnan().any(dim=1), classes, scores.argmax(dim=1))
    cells = torch.bincount(given * (classes + 1) + taken, minlength=classes * (classes + 1))
    return cells.reshape(classes, classes + 1).numpy().astype(np.int64)


@dataclass(frozen=True)
class ClassScores:
    """One entry per class; NaN where there is nothing to divide by: no label of it, or never predicted."""

    samples: Counts
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]

    def macro(self) -> dict[str, float]:
        """Means over the classes that occur among the labels. A class of them that is never predicted counts as 0."""
        there = self.samples > 0
        return {name: float(np.nan_to_num(getattr(self, name)[there]).mean()) for name in MACRO}


def class_scores(counts: Counts) -> ClassScores:
    """F1 is 2 TP / (2 TP + FP + FN), which is the harmonic mean of the other two (van Rijsbergen 1979)."""
    hits, samples, predicted = _margins(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ClassScores(samples, hits / predicted, hits / samples, 2 * hits / (samples + predicted))


def _margins(counts: Counts) -> tuple[Counts, Counts, Counts]:
    """(hits, labels, predictions) of each class."""
    return np.diagonal(counts).copy(), counts.sum(axis=1), counts[:, : len(counts)].sum(axis=0)


def macro_figures(counts: Counts, seed: int = 0) -> dict[str, Measurement]:
    """ "macro_precision", "macro_recall" and "macro_f1" (unit "share") with the bootstrap's 95 % interval.

    Drawing samples again is drawing cells of the counts from a multinomial (Efron 1979), so no sample is kept.
    """
    values, total = class_scores(counts).macro(), int(counts.sum())
    drawn = _drawn(counts, total, seed)
    figures = {}
    for name, value in values.items():
        low, high = np.quantile(drawn[name], [0.025, 0.975])
        figures[f"macro_{name}"] = Measurement(value, min(value, float(low)), max(value, float(high)), total, "share")
    return figures


def _drawn(counts: Counts, total: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """{name: (draws,)}: the same averages over counts that were drawn again."""
    label, taken = np.nonzero(counts)
    cells = np.random.default_rng(seed).multinomial(total, counts[label, taken] / total, size=DRAWS)
    classes = len(counts)

    def summed(place: Counts, chosen: NDArray[np.bool_]) -> Counts:
        column = np.flatnonzero(chosen)
        sums = csr_array((np.ones(len(column), np.int64), (place[chosen], column)), shape=(classes, len(label)))
        result: Counts = sums @ cells.T
        return result

    hits, samples = summed(label, label == taken), summed(label, label >= 0)
    predicted = summed(taken, taken < classes)
    there = samples > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = {"precision": hits / predicted, "recall": hits / samples, "f1": 2 * hits / (samples + predicted)}
    return {k: np.where(there, np.nan_to_num(v), 0).sum(axis=0) / there.sum(axis=0) for k, v in parts.items()}


def recalls(counts: Counts) -> dict[int, Measurement]:
    """{class: recall with its Wilson interval} for every class that occurs."""
    hits, samples, _ = _margins(counts)
    found = {}
    for label in np.flatnonzero(samples).tolist():
        share, n = float(hits[label] / samples[label]), int(samples[label])
        low, high = wilson(share, n)
        found[label] = Measurement(share, low, high, n, "share")
    return found


class Confusion:
    """Watches a pass over batches. `why` says what kept it from counting, empty where nothing did."""

    def __init__(self) -> None:
        self.counts: Counts | None = None
        self.why = ""

    def __call__(self, inputs: Any, output: Any, labels: Any, scores: Any) -> None:
        del inputs, scores
        if self.why or not _are_classes(self, output, labels):
            return
        found = class_counts(output, labels)
        if self.counts is not None and self.counts.shape != found.shape:
            self.why, self.counts = (
                f"batches differ in their number of classes, {len(self.counts)} and {len(found)}",
                None,
            )
            return
        self.counts = found if self.counts is None else self.counts + found

    def figures(self) -> dict[str, Measurement]:
        return {} if self.counts is None else macro_figures(self.counts)

    def per_class(self) -> dict[str, list[int]] | None:
        """{"samples", "hits", "predicted"}: a number for each class; what is journaled of a member."""
        if self.counts is None:
            return None
        hits, samples, predicted = (part.tolist() for part in _margins(self.counts))
        return {"samples": samples, "hits": hits, "predicted": predicted}


def _are_classes(confusion: Confusion, output: Any, labels: Any) -> bool:
    why = not_classes(output, labels)
    if why:
        confusion.why, confusion.counts = why, None
    return not why


def not_classes(output: Any, labels: Any) -> str:
    """Why these are not logits (samples, classes) with a class number for each sample; empty if they are."""
    try:
        classification.check(output, labels)
    except DataError as error:
        return f"the labels are not classes: {error}"
    except (TypeError, ValueError, RuntimeError) as error:  # labels of a user's own task may be anything
        return f"the labels are not classes ({type(labels).__name__}: {' '.join(str(error).split())[:80]})"
    return ""
