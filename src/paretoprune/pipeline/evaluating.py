"""`pp.evaluate`: the figures of the field for one network, member or exported file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paretoprune import graph as graphs
from paretoprune.core.candidate import Candidate
from paretoprune.core.errors import DataError, FileError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.measurement import Measurement
from paretoprune.core.protocols import Target, Task
from paretoprune.core.quality import QUALITIES, quality_of, shifts
from paretoprune.pipeline.pruned import Pruned
from paretoprune.pipeline.targets import find_target
from paretoprune.targets.feeds import feed_of
from paretoprune.tasks import (
    EPS,
    SAMPLES,
    Answers,
    Shifting,
    against_original,
    answers,
    check_shift,
    input_range,
    task_of,
    train_scores,
    with_gap,
)
from paretoprune.tasks.confusion import Counts, recalls

Judgeable = nn.Module | Pruned | Candidate | str | Path
DEFAULT = ("accuracy", "precision", "recall", "f1", "loss", "calibration error")

_KEY_OF = {q.name: q.key for q in QUALITIES}


@dataclass(frozen=True)
class Evaluation(Mapping[str, Measurement]):
    """Figures by key ("accuracy", "macro_f1", "calibration_error", "robust_fgsm" …); names ("f1") are understood too.

    `absent`: key -> why a figure that was asked for could not be taken. `confusion`: (classes, classes + 1) counts by
    label and prediction, the last column for rows with NaN; None where labels are not classes. `recall_of`: recall of
    each class that occurs. `against`: the same of the network that it was compared with.
    """

    figures: Mapping[str, Measurement]
    absent: Mapping[str, str] = field(default_factory=dict)
    confusion: Counts | None = None
    recall_of: Mapping[int, Measurement] = field(default_factory=dict)
    against: Evaluation | None = None

    def __getitem__(self, key: str) -> Measurement:
        known = _KEY_OF.get(key, key)
        if known in self.figures:
            return self.figures[known]
        raise KeyError(f"{key!r}: {self.absent.get(known, 'it was not asked for')}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.figures)

    def __len__(self) -> int:
        return len(self.figures)


def evaluate(
    model: Judgeable,
    batches: Iterable[Any],
    *,
    task: str | Task = "classification",
    metrics: Sequence[str] = DEFAULT,
    against: Judgeable | None = None,
    train: Iterable[Any] | None = None,
    target: str | Target = "onnxruntime",
    eps: float = EPS,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Judge a network on `batches` of (x, y); a candidate of a front or a path by its exported file.

    `metrics`: "accuracy", "precision", "recall", "f1" (macro), "loss", "calibration error", "recovery ratio" (needs
    `against`), "generalisation gap" (needs `train`), "robust accuracy (fgsm)", also pgd, noise, blur and contrast.
    `eps`: largest change by an attack as a share of the input's range; `samples`: how many are disturbed. A candidate's
    attacks are made on its torch module and answered by its file. The module is not changed. Raises UsageError for what
    is unknown, DataError for batches or inputs that do not fit; a figure that these labels cannot give is in `absent`.
    """
    meaning, keys = task_of(task), _keys(metrics, against, train)
    if isinstance(batches, Iterator):
        raise DataError("the batches can be read only once; give a list, a DataLoader, or an object that starts again")
    shifting = _shifting(batches, keys, eps, samples, seed)

    def judged(given: Judgeable) -> tuple[Answers, Callable[[Example], Any]]:
        predict = _predictor(given, target)
        return answers(predict, batches, meaning, shifting=shifting, module=lambda: _module(given)), predict

    found, predict = judged(model)
    base = None if against is None else judged(against)[0]
    if base is not None:
        found = against_original(found, base.figures.get("loss"), base.losses)
    if train is not None:
        found = with_gap(found, train_scores(predict, train, meaning, seed))
    return _evaluation(found, keys, None if base is None else _evaluation(base, keys, None))


def _evaluation(found: Answers, keys: Sequence[str], against: Evaluation | None) -> Evaluation:
    return Evaluation(
        {key: found.figures[key] for key in keys if key in found.figures},
        {key: found.absent[key] for key in keys if key in found.absent},
        found.counts,
        {} if found.counts is None else recalls(found.counts),
        against,
    )


def _keys(metrics: Sequence[str], against: Any, train: Any) -> tuple[str, ...]:
    if isinstance(metrics, str) or not all(isinstance(name, str) for name in metrics):
        raise UsageError(f"metrics={metrics!r}: give a list of names; there are accuracy, {_names()}")
    keys = tuple(dict.fromkeys("accuracy" if name == "accuracy" else quality_of(name).key for name in metrics))
    if "recovery_ratio" in keys and against is None:
        raise UsageError("the recovery ratio compares two networks: give against= the original, or leave it out")
    if "generalisation_gap" in keys and train is None:
        raise UsageError("the generalisation gap needs train= batches of the training set, or leave it out")
    return keys


def _names() -> str:
    return ", ".join(q.name for q in QUALITIES)


def _shifting(batches: Iterable[Any], keys: Sequence[str], eps: float, samples: int, seed: int) -> Shifting | None:
    how = shifts(keys)
    if not how:
        return None
    if not isinstance(eps, (int, float)) or not 0 < eps <= 1:
        raise UsageError(f"eps={eps!r}: give a share of the input's range, above 0 and at most 1")
    if not isinstance(samples, int) or samples < 1:
        raise UsageError(f"samples={samples!r}: give a whole number of at least 1")
    for inputs, _ in _first(batches):
        for one in how:
            check_shift(inputs, one)
    low, high = input_range(batches)
    return Shifting(how, low, high, float(eps), samples, seed)


def _first(batches: Iterable[Any]) -> Iterator[tuple[Example, Any]]:
    from paretoprune.core.data import take

    return take(batches, 1)


def _predictor(given: Judgeable, target: str | Target) -> Callable[[Example], Any]:
    if isinstance(given, (str, Path, Candidate)):
        path = given.path if isinstance(given, Candidate) else Path(given)
        if not path.is_file():
            raise FileError(f"{path}: there is no such file; give an exported file or a module")
        runner = find_target(target).load(path)
        return lambda inputs: runner(feed_of(inputs))
    module = _module(given)

    def predict(inputs: Example) -> Any:
        with torch.no_grad():
            return module(*inputs.args, **inputs.kwargs)

    return predict


def _module(given: Judgeable) -> nn.Module:
    """A private copy in eval mode."""
    if isinstance(given, (str, Path)):
        raise UsageError(
            f"{given}: an exported file has no gradients, which fgsm and pgd need; give a module or a candidate"
        )
    found = given.load() if isinstance(given, Candidate) else given.model if isinstance(given, Pruned) else given
    if not isinstance(found, nn.Module):
        raise UsageError(f"the model is a {type(found).__name__}; give a module, a Pruned, a candidate, or a path")
    return graphs.private_copy(found)[0]
