from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from paretoprune.core.data import Data, split_batch
from paretoprune.core.errors import DataError
from paretoprune.core.graph import Example
from paretoprune.tasks import check_data, prepare
from paretoprune.tasks.classification import CLASSIFICATION

EXAMPLE = torch.zeros(2, 3, 8, 8)


def sample_set(seed: int, batches: int = 3, size: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    made = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, 8, 8, generator=made), torch.randint(0, 5, (size,), generator=made))
        for _ in range(batches)
    ]


def good() -> Data:
    return Data(sample_set(1), sample_set(2), sample_set(3))


def predict(inputs: Example) -> torch.Tensor:
    return torch.zeros(inputs.args[0].shape[0], 5)


def test_counts_and_fingerprint() -> None:
    checked = check_data(good(), EXAMPLE, CLASSIFICATION, predict=predict)
    assert checked.samples == {"train": 12, "validation": 12, "test": 12}
    assert checked.batches["train"] == 3
    assert checked.notes == ()
    assert check_data(good(), EXAMPLE, CLASSIFICATION).fingerprint == checked.fingerprint
    changed = good()
    changed.test[0][1][0] = (changed.test[0][1][0] + 1) % 5  # type: ignore[index]
    assert check_data(changed, EXAMPLE, CLASSIFICATION).fingerprint != checked.fingerprint
    shorter = Data(sample_set(1, 2), sample_set(2), sample_set(3))
    assert check_data(shorter, EXAMPLE, CLASSIFICATION).fingerprint != checked.fingerprint


def test_a_shuffled_loader_has_the_same_fingerprint_on_every_run_and_random_state_stays() -> None:
    train = TensorDataset(*[torch.cat(parts) for parts in zip(*sample_set(1, 10), strict=True)])

    def run() -> str:
        data = Data(DataLoader(train, batch_size=8, shuffle=True), sample_set(2), sample_set(3))
        return check_data(data, EXAMPLE, CLASSIFICATION).fingerprint

    before = torch.random.get_rng_state()
    first = run()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert run() == first


def test_prepared_sets_give_pairs_and_can_be_read_again() -> None:
    prepared = prepare(good(), EXAMPLE, cap=2)
    for _ in range(2):
        pairs = list(prepared.train)
        assert len(pairs) == 2
        inputs, labels = split_batch(pairs[0])
        assert inputs.args[0].shape == (4, 3, 8, 8)
        assert labels.shape == (4,)
    assert len(prepared.train) == 2  # type: ignore[arg-type]
    assert torch.equal(prepared.train[1][1], sample_set(1)[1][1])  # type: ignore[index]
    assert torch.equal(prepared.train[-1][1], sample_set(1)[1][1])  # type: ignore[index]
    with pytest.raises(IndexError):
        prepared.train[2]  # type: ignore[index]
    assert prepare(prepared, EXAMPLE).test is prepared.test


def test_two_inputs_without_labels_are_not_taken_for_a_label() -> None:
    example = (torch.zeros(2, 3), torch.zeros(2, 5))
    prepared = prepare(Data([example], [(*example, torch.tensor([0, 1]))], [example]), example)
    inputs, labels = next(iter(prepared.train))
    assert len(inputs.args) == 2
    assert labels is None
    assert next(iter(prepared.validation))[1].tolist() == [0, 1]


def test_dynamic_dimension_may_differ() -> None:
    tokens = [(torch.zeros(4, 9, dtype=torch.long), torch.zeros(4, dtype=torch.long))]
    example = torch.zeros(2, 16, dtype=torch.long)
    data = Data(tokens, tokens, tokens)
    with pytest.raises(DataError, match=r"\(any, 9\); the example has \(any, 16\)"):
        next(iter(prepare(data, example).train))
    inputs, _ = next(iter(prepare(data, example, dynamic={"input": [1]}).train))
    assert inputs.args[0].shape == (4, 9)


def test_calibration_is_checked_too_and_needs_no_labels() -> None:
    images = [x for x, _ in sample_set(4)]
    checked = check_data(Data(sample_set(1), sample_set(2), sample_set(3), images), EXAMPLE, CLASSIFICATION)
    assert checked.samples["calibration"] == 12
    with pytest.raises(DataError, match="calibration is empty"):
        check_data(Data(sample_set(1), sample_set(2), sample_set(3), []), EXAMPLE, CLASSIFICATION)


class OnceOnly:
    """`iter` gives the same half-read iterator again: no one-shot by its type, but by its deeds."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = iter(batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return 3


def test_second_pass_that_gives_nothing_is_found() -> None:
    with pytest.raises(DataError, match="second pass gave no batch"):
        check_data(Data(OnceOnly(sample_set(1)), sample_set(2), sample_set(3)), EXAMPLE, CLASSIFICATION)


@pytest.mark.parametrize("wrong", [3, "images.npz", torch.zeros(4, 3, 8, 8), {"x": 1}, None])
def test_not_batches_at_all(wrong: Any) -> None:
    with pytest.raises(DataError, match=r"train is a .*expected an iterable of batches"):
        check_data(Data(wrong, sample_set(2), sample_set(3)), EXAMPLE, CLASSIFICATION)


def test_labels_missing_or_too_few() -> None:
    images = [x for x, _ in sample_set(2)]
    with pytest.raises(DataError, match="validation, batch 0 has no labels"):
        check_data(Data(images, images, sample_set(3)), EXAMPLE, CLASSIFICATION)
    short = [(x, y[:3]) for x, y in sample_set(2)]
    with pytest.raises(DataError, match="4 samples but 3 labels"):
        check_data(Data(sample_set(1), short, sample_set(3)), EXAMPLE, CLASSIFICATION)


def test_other_type_is_named() -> None:
    doubles = [(x.double(), y) for x, y in sample_set(1)]
    with pytest.raises(
        DataError, match=r"train, batch 0: input 'input' is torch.float64; the example is torch.float32"
    ):
        check_data(Data(doubles, sample_set(2), sample_set(3)), EXAMPLE, CLASSIFICATION)
    arrays = [(x.numpy(), y) for x, y in sample_set(1)]
    with pytest.raises(DataError, match="is a ndarray; expected a torch tensor"):
        check_data(Data(arrays, sample_set(2), sample_set(3)), EXAMPLE, CLASSIFICATION)
