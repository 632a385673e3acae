from __future__ import annotations

import numpy as np
import pytest
import torch

from paretoprune.core.errors import DataError, UsageError
from paretoprune.core.protocols import Task
from paretoprune.tasks import TASKS, task_of
from paretoprune.tasks.classification import CLASSIFICATION

LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0], [1.0, 0.0, 2.0]])


class Output:
    logits = LOGITS


@pytest.mark.parametrize("output", [LOGITS, Output(), {"loss": None, "logits": LOGITS}, (LOGITS, [1]), LOGITS.numpy()])
def test_logits_are_found_in_every_kind_of_output(output: object) -> None:
    labels = torch.tensor([0, 1, 1])
    assert CLASSIFICATION.correct(output, labels).tolist() == [1.0, 1.0, 0.0]
    assert float(CLASSIFICATION.loss(output, labels)) == pytest.approx(
        float(torch.nn.functional.cross_entropy(LOGITS, labels))
    )


def test_numpy_and_small_integer_labels() -> None:
    for labels in (np.array([0, 1, 2], dtype=np.uint8), torch.tensor([0, 1, 2], dtype=torch.int16), [0, 1, 2]):
        assert CLASSIFICATION.correct(LOGITS, labels).tolist() == [1.0, 1.0, 1.0]
        assert torch.isfinite(CLASSIFICATION.loss(LOGITS, labels))


def test_a_row_with_nan_is_wrong_whatever_the_label() -> None:
    broken = torch.full((3, 3), float("nan"))
    for label in range(3):
        assert CLASSIFICATION.correct(broken, torch.full((3,), label)).sum() == 0


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (torch.tensor([0.0, 1.0, 2.0]), "torch.float32.*integers 0 to 2"),
        (torch.tensor([[0], [1], [2]]), r"shape \(3, 1\)"),
        (torch.tensor([True, False, True]), "torch.bool"),
        (torch.tensor([0, 1, 3]), "0 to 3, but the network has 3 classes"),
        (torch.tensor([-1, 1, 2]), "from -1 to 2"),
    ],
)
def test_labels_that_do_not_fit(labels: torch.Tensor, says: str) -> None:
    assert CLASSIFICATION.check is not None
    with pytest.raises(DataError, match=says):
        CLASSIFICATION.check(LOGITS, labels)


@pytest.mark.parametrize("output", [torch.zeros(3, 1), torch.zeros(3), torch.zeros(3, 4, 5)])
def test_outputs_that_are_no_logits(output: torch.Tensor) -> None:
    assert CLASSIFICATION.check is not None
    with pytest.raises(DataError, match="another task"):
        CLASSIFICATION.check(output, torch.zeros(3, dtype=torch.long))


def test_no_tensor_in_the_output() -> None:
    with pytest.raises(DataError, match="no tensor in it"):
        CLASSIFICATION.loss({"a": "b"}, torch.zeros(1))


def test_table() -> None:
    assert set(TASKS) == {"classification"}
    assert task_of("classification") is CLASSIFICATION
    mine = Task("mine", CLASSIFICATION.loss, CLASSIFICATION.correct)
    assert task_of(mine) is mine
    assert task_of("paretoprune.tasks.classification:CLASSIFICATION") is CLASSIFICATION
    with pytest.raises(UsageError, match="unknown task 'tagging'"):
        task_of("tagging")
    with pytest.raises(UsageError, match="expected a paretoprune Task"):
        task_of("math:pi")
