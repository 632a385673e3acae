"""Every figure of the answers of one exported file, from one pass over each set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from paretoprune.core.graph import Example
from paretoprune.core.measurement import Measurement
from paretoprune.core.quality import validation_key
from paretoprune.pipeline.study import Study
from paretoprune.tasks import Answers, against_original, answers, train_scores, with_gap

MATRIX_CLASSES = 100
"""Up to so many classes the whole confusion matrix is journaled; beyond it, the counts per class."""


@dataclass(frozen=True)
class Judged:
    """`figures` of both sets by key; `absent`: key -> why; `classes`: counts of the test set, for the journal."""

    figures: Mapping[str, Measurement]
    absent: Mapping[str, str]
    classes: Mapping[str, Any] | None


def judge(study: Study, predict: Callable[[Example], Any], load: Callable[[], nn.Module], name: str) -> Judged:
    """The test set is read here, once. `load` gives the module whose gradients attack the file."""
    train = train_scores(predict, study.checked.data.train, study.task, study.settings.seed)
    original = None if name == "original" else _original(study)

    def of(batches: Iterable[Any], prefix: str) -> Answers:
        found = answers(predict, batches, study.task, shifting=study.shifting, module=load)
        return with_gap(against_original(found, original, prefix), train)

    seen, test = of(study.checked.data.validation, "validation_"), of(study.checked.data.test, "")
    figures = {validation_key(key): m for key, m in seen.figures.items()} | dict(test.figures)
    return Judged(figures, dict(test.absent), _classes(test))


def _original(study: Study) -> dict[str, Measurement]:
    record = study.folder.done("candidate", "original")
    return {key: Measurement.from_json(m) for key, m in record["measurements"].items()} if record else {}


def _classes(found: Answers) -> dict[str, Any] | None:
    if found.counts is None or found.per_class is None:
        return None
    small = len(found.counts) <= MATRIX_CLASSES
    return {**found.per_class, "matrix": found.counts.tolist() if small else None}
