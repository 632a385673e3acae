"""Every figure of the answers of one exported file, from one pass over each set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from paretoprune.core.graph import Example
from paretoprune.core.measurement import Measurement
from paretoprune.core.quality import validation_key
from paretoprune.pipeline.study import Study
from paretoprune.tasks import Answers, against_original, answers, train_scores, with_gap

PAIRED = 20_000
"""Up to so many losses of the original are journaled, to be compared sample by sample."""
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

    def of(which: str, batches: Iterable[Any]) -> Answers:
        found = answers(predict, batches, study.task, shifting=study.shifting, module=load)
        loss, losses = _original_losses(study, which, found if name == "original" else None)
        return with_gap(against_original(found, loss, losses), train)

    seen = of("validation", study.checked.data.validation)
    test = of("test", study.checked.data.test)
    figures = {validation_key(key): m for key, m in seen.figures.items()} | dict(test.figures)
    return Judged(figures, dict(test.absent), _classes(test))


def _original_losses(study: Study, which: str, taken: Answers | None) -> tuple[Measurement | None, Any]:
    """(loss, losses per sample) of the original on a set; journaled when it is judged itself, which is `taken`.

    A folder of an earlier version has none.
    """
    if taken is not None:
        loss = taken.figures.get("loss")
        values = [] if taken.losses is None else [float(f"{v:.7g}") for v in taken.losses[:PAIRED]]
        entry = {"loss": None if loss is None else loss.to_json(), "values": values}
        study.folder.record("original losses", which, entry, replace=True)  # a run that died here judges it again
    stored = study.folder.done("original losses", which) or {"loss": None, "values": []}
    loss = None if stored["loss"] is None else Measurement.from_json(stored["loss"])
    return loss, np.array(stored["values"]) if stored["values"] else None


def _classes(found: Answers) -> dict[str, Any] | None:
    if found.counts is None or found.per_class is None:
        return None
    small = len(found.counts) <= MATRIX_CLASSES
    return {**found.per_class, "matrix": found.counts.tolist() if small else None}
