"""FAULTS, the data: 39 to 47."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import paretoprune.tasks.check as check_module
from paretoprune.core.data import Data
from paretoprune.core.errors import DataError
from paretoprune.core.graph import Example
from paretoprune.tasks import check_data, evaluate, prepare
from paretoprune.tasks.classification import CLASSIFICATION

pytestmark = pytest.mark.fault
EXAMPLE = torch.zeros(2, 3, 4, 4)
Batch = tuple[torch.Tensor, torch.Tensor]


def batches(seed: int) -> list[Batch]:
    made = torch.Generator().manual_seed(seed)
    return [(torch.randn(4, 3, 4, 4, generator=made), torch.randint(0, 5, (4,), generator=made)) for _ in range(3)]


def predict(inputs: Example) -> torch.Tensor:
    return torch.zeros(inputs.args[0].shape[0], 5)


def check(train: Any = None, validation: Any = None, test: Any = None, **options: Any) -> Any:
    data = Data(
        batches(1) if train is None else train,
        batches(2) if validation is None else validation,
        batches(3) if test is None else test,
    )
    return check_data(data, EXAMPLE, CLASSIFICATION, predict=predict, **options)


class Endless:
    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield from batches(1)


class Broken(Dataset[Batch]):
    """Sample 9 cannot be read."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Batch:
        if index == 9:
            raise OSError("image_9.jpg is truncated")
        return torch.full((3, 4, 4), float(index)), torch.tensor(index % 5)


@pytest.mark.parametrize("which", ["train", "validation", "test"])
def test_39_empty_loader(which: str) -> None:
    with pytest.raises(DataError, match=f"{which} is empty"):
        check(**{which: []})
    with pytest.raises(DataError, match=f"{which} is empty"):
        check(**{which: [(torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.long))]})


@pytest.mark.parametrize("label", [5, -1])
def test_40_labels_out_of_range_show_the_number_of_classes(label: int) -> None:
    wrong = batches(1)
    wrong[2][1][3] = label
    with pytest.raises(DataError, match=r"train, batch 2: labels run .* network has 5 classes \(0 to 4\)"):
        check(train=wrong)


def test_41_dict_batches_are_mapped() -> None:
    mapped = [{"pixels": x, "label": y} for x, y in batches(1)]
    checked = check(train=mapped)
    inputs, labels = next(iter(checked.data.train))
    assert torch.equal(inputs.args[0], batches(1)[0][0])
    assert torch.equal(labels, batches(1)[0][1])
    named = {"x": torch.zeros(2, 3, 4, 4)}
    extra = [{"x": x, "name": ["a"] * 4, "labels": y} for x, y in batches(1)]
    inputs, _ = next(iter(prepare(Data(extra, extra, extra), named).train))
    assert list(inputs.kwargs) == ["x"]


def test_41_dict_batches_that_cannot_be_mapped_list_their_keys() -> None:
    unclear = [{"image": x, "class": y} for x, y in batches(1)]
    with pytest.raises(DataError, match="train, batch 0: has the keys 'image', 'class'"):
        check(train=unclear)
    data = Data(unclear, unclear, unclear)
    with pytest.raises(DataError, match=r"keys 'image', 'class'; the network's example has 'x': rename \['x'\]"):
        next(iter(prepare(data, {"x": EXAMPLE}).train))


def test_42_infinite_iterable_needs_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "PATIENCE", 20)
    with pytest.raises(DataError, match="train has no length and more than 20 batches: set a cap"):
        check(train=Endless())
    checked = check(train=Endless(), cap=2)
    assert checked.batches["train"] == 2
    assert len(list(checked.data.train)) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_43_exception_in_a_loader_shows_index_and_cause(workers: int) -> None:
    loader = DataLoader(Broken(), batch_size=4, num_workers=workers)
    with pytest.raises(
        DataError, match=r"train: reading batch 2 failed with OSError: image_9\.jpg is truncated"
    ) as caught:
        check(train=loader)
    assert isinstance(caught.value.__cause__, OSError)
    assert "\n" not in str(caught.value)


def test_43_an_exception_later_than_the_check_is_named_too() -> None:
    prepared = prepare(Data(batches(1), DataLoader(Broken(), batch_size=4), batches(3)), EXAMPLE)
    with pytest.raises(DataError, match="validation: reading batch 2 failed with OSError"):
        evaluate(predict, prepared.validation, CLASSIFICATION)


def test_44_wrong_shape_shows_expected_and_given() -> None:
    wrong = batches(2)
    wrong[1] = (torch.zeros(4, 1, 4, 4), wrong[1][1])
    with pytest.raises(
        DataError,
        match=r"validation, batch 1: input 'input' has shape \(any, 1, 4, 4\); the example has \(any, 3, 4, 4\)",
    ):
        check(validation=wrong)
    flat = [(x.flatten(1), y) for x, y in batches(3)]
    with pytest.raises(DataError, match=r"test, batch 0: .*\(any, 48\); the example has \(any, 3, 4, 4\)"):
        check(test=flat)
    two = [(x, x, y) for x, y in batches(1)]
    with pytest.raises(DataError, match="has 2 positional input"):
        check(train=two)


@pytest.mark.parametrize("which", ["train", "validation", "test"])
def test_45_one_shot_generator_is_refused_unread(which: str) -> None:
    read = []

    def generator() -> Iterator[Batch]:
        for batch in batches(1):
            read.append(1)
            yield batch

    with pytest.raises(DataError, match=f"{which} can be read only once.*give a list, a DataLoader"):
        check(**{which: generator()})
    with pytest.raises(DataError, match="only once"):
        check(**{which: iter(batches(1))})
    assert not read


def test_46_overlap_of_train_and_validation_warns() -> None:
    shared = [*batches(2)[:2], batches(1)[1]]
    with pytest.warns(UserWarning, match="train and validation share 4 of the 12 distinct samples"):
        checked = check(validation=shared)
    assert len(checked.notes) == 1


def test_47_nan_inputs_are_counted_and_named() -> None:
    wrong = batches(1)
    wrong[1][0][0, 0, 0, :3] = float("nan")
    wrong[2][0][1, 2, 3, 3] = float("nan")
    with pytest.raises(
        DataError, match=r"train: input 'input' holds 4 NaN value\(s\) in 2 of 3 batches, first in batch 1"
    ):
        check(train=wrong)
