"""Confusion counts and what is computed from them, against scikit-learn on random data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from paretoprune.tasks.confusion import Confusion, class_counts, class_scores, macro_figures, recalls


def random_case(classes: int, samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(samples, classes, generator=made), torch.randint(0, classes, (samples,), generator=made)


@given(st.integers(2, 9), st.integers(1, 120), st.integers(0, 10_000))
def test_counts_and_scores_are_those_of_scikit_learn(classes: int, samples: int, seed: int) -> None:
    logits, labels = random_case(classes, samples, seed)
    taken, every = logits.argmax(1).numpy(), np.arange(classes)
    counts = class_counts(logits, labels)
    assert (counts[:, :classes] == confusion_matrix(labels.numpy(), taken, labels=every)).all()
    assert counts[:, classes].sum() == 0
    found = class_scores(counts)
    theirs = precision_recall_fscore_support(labels.numpy(), taken, labels=every, zero_division=np.nan)
    there = (labels[:, None] == torch.arange(classes)).any(0).numpy()
    assert np.allclose(found.precision, theirs[0], equal_nan=True)
    assert np.allclose(found.recall, theirs[1], equal_nan=True)
    assert np.allclose(found.f1[there], theirs[2][there])
    present = np.unique(labels.numpy())
    macro = precision_recall_fscore_support(labels.numpy(), taken, labels=present, average="macro", zero_division=0)
    assert list(found.macro().values()) == pytest.approx(macro[:3])


def test_a_class_that_never_occurs_has_no_recall_and_is_not_averaged() -> None:
    logits = torch.tensor([[3.0, 0, 0], [3.0, 0, 0], [0, 3.0, 0]])
    found = class_scores(class_counts(logits, torch.tensor([0, 1, 1])))
    assert np.isnan(found.recall[2])
    assert np.isnan(found.precision[2])
    assert found.macro()["recall"] == pytest.approx((1 + 0.5) / 2)
    assert sorted(recalls(class_counts(logits, torch.tensor([0, 1, 1])))) == [0, 1]


def test_a_row_with_nan_is_an_answer_of_no_class() -> None:
    logits = torch.tensor([[1.0, 0], [float("nan"), 0]])
    assert class_counts(logits, torch.tensor([0, 0])).tolist() == [[1, 0, 1], [0, 0, 0]]


def test_the_interval_is_about_as_wide_as_the_spread_of_fresh_samples() -> None:
    """F1 of 300 samples drawn again and again from one distribution: its spread against the bootstrap's interval."""

    def counts(seed: int) -> np.ndarray:
        logits, labels = random_case(4, 300, seed)
        return class_counts(logits + 1.5 * torch.nn.functional.one_hot(labels, 4), labels)

    values = [class_scores(counts(seed)).macro()["f1"] for seed in range(200)]
    figure = macro_figures(counts(0))["macro_f1"]
    assert figure.low < figure.value < figure.high
    assert (figure.high - figure.low) == pytest.approx(4 * float(np.std(values)), rel=0.35)
    assert macro_figures(counts(0)) == macro_figures(counts(0))


def test_batches_add_up() -> None:
    logits, labels = random_case(3, 50, 1)
    watch = Confusion()
    for part in (slice(0, 20), slice(20, 50)):
        watch(None, logits[part], labels[part], None)
    assert watch.counts is not None
    assert (watch.counts == class_counts(logits, labels)).all()
    assert watch.per_class() == {
        "samples": torch.bincount(labels, minlength=3).tolist(),
        "hits": torch.bincount(labels[logits.argmax(1) == labels], minlength=3).tolist(),
        "predicted": torch.bincount(logits.argmax(1), minlength=3).tolist(),
    }


@pytest.mark.parametrize(
    ("output", "labels", "says"),
    [
        (torch.zeros(4, 3), torch.rand(4), "labels are torch.float32"),
        (torch.zeros(4, 3, 5), torch.zeros(4, dtype=torch.long), "shape (4, 3, 5)"),
        (torch.zeros(4, 3), torch.zeros(4, 2, dtype=torch.long), "one class number per sample"),
        (torch.zeros(2, 3), {"a": 1}, "the labels are not classes"),
    ],
)
def test_labels_that_are_no_classes_give_the_reason(output: torch.Tensor, labels: object, says: str) -> None:
    watch = Confusion()
    watch(None, output, labels, None)
    assert watch.figures() == {}
    assert watch.per_class() is None
    assert says in watch.why
