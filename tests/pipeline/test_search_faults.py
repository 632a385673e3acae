"""The numbered faults as a user of `pp.search` meets them: refused before the run folder holds anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paretoprune as pp

pytestmark = pytest.mark.fault
errors = pp.errors
Searching = Callable[..., pp.Front]
Batch = tuple[Tensor, Tensor]


def refused(searching: Searching, tmp_path: Path, kind: type[Exception], words: str, **options: Any) -> None:
    with pytest.raises(kind, match=words) as error:
        searching(**options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists(), "work began"


def spoilt(batches: Any, index: int, change: Callable[[Tensor, Tensor], Batch]) -> list[Batch]:
    """The batches with the one at `index` changed."""
    return [change(x.clone(), y.clone()) if i == index else (x, y) for i, (x, y) in enumerate(batches)]


def test_19_nan_weights(searching: Searching, tmp_path: Path, net: nn.Module) -> None:
    with torch.no_grad():
        net.conv2.weight[3] = float("nan")
    refused(searching, tmp_path, errors.ModelError, r"'conv2\.weight' holds 144 NaN value", model=net)


def test_20_nan_in_the_recovery_of_one_candidate_fails_that_one_alone(searching: Searching, tmp_path: Path) -> None:
    from paretoprune.store.run import RunFolder
    from paretoprune.tasks.classification import CLASSIFICATION

    trained = iter(range(10**6))

    def loss(output: Any, labels: Any) -> Tensor:
        """Of the first step that is trained it is no number."""
        right = CLASSIFICATION.loss(output, labels)
        return right * float("nan") if right.requires_grad and next(trained) == 0 else right

    front = searching(task=replace(CLASSIFICATION, loss=loss), steps=3, candidates=2)
    assert {member.name for member in front.candidates} == {"original", "c02-fp32"}
    failures = RunFolder.read(tmp_path / "run").all("failure")
    assert list(failures) == ["c01"]
    assert "distillation: the loss is nan at step 0; lower lr=" in failures["c01"]["cause"]


@pytest.mark.parametrize("name", ["train", "validation", "test", "calibration"])
def test_39_empty_loader(searching: Searching, tmp_path: Path, data: pp.Data, name: str) -> None:
    refused(searching, tmp_path, errors.DataError, f"{name} is empty", data=replace(data, **{name: []}))


@pytest.mark.parametrize("label", [4, -1])
def test_40_labels_out_of_range(searching: Searching, tmp_path: Path, data: pp.Data, label: int) -> None:
    wrong = spoilt(data.validation, 1, lambda x, y: (x, y.fill_(label)))
    words = rf"validation, batch 1: labels run from {label} to {label}, but the network has 4 classes"
    refused(searching, tmp_path, errors.DataError, words, data=replace(data, validation=wrong))


def test_42_infinite_iterable(
    searching: Searching, tmp_path: Path, data: pp.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless:
        def __iter__(self) -> Iterator[Batch]:
            while True:
                yield from data.train

    import paretoprune.tasks.check as check_room

    monkeypatch.setattr(check_room, "PATIENCE", 20)
    endless = replace(data, train=Endless())
    refused(searching, tmp_path, errors.DataError, "train has no length and more than 20 batches", data=endless)
    assert searching(data=endless, max_batches=3).candidates


@pytest.mark.parametrize("name", ["train", "test"])
def test_44_wrong_shape(searching: Searching, tmp_path: Path, data: pp.Data, name: str) -> None:
    wrong = spoilt(getattr(data, name), 0, lambda x, y: (x[:, :, :6], y))
    words = rf"{name}, batch 0: input 'input' has shape \(any, 1, 6, 8\); the example has \(any, 1, 8, 8\)"
    refused(searching, tmp_path, errors.DataError, words, data=replace(data, **{name: wrong}))


def test_44_an_example_of_the_wrong_shape(searching: Searching, tmp_path: Path) -> None:
    refused(searching, tmp_path, errors.PruneError, "3", example=torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("name", ["train", "validation", "test", "calibration"])
def test_45_one_shot_generator(searching: Searching, tmp_path: Path, data: pp.Data, name: str) -> None:
    once = replace(data, **{name: (batch for batch in data.train)})
    refused(searching, tmp_path, errors.DataError, rf"{name} can be read only once \(generator\)", data=once)


def test_46_overlap_is_noted_in_the_run(searching: Searching, tmp_path: Path, data: pp.Data) -> None:
    from paretoprune.store.run import RunFolder

    searching(data=replace(data, validation=list(data.test)), candidates=1)
    notes = RunFolder.read(tmp_path / "run").done("about", "run")["notes"]
    assert any("validation and test share 96 of the 96 distinct samples" in note for note in notes)


def test_47_nan_inputs(searching: Searching, tmp_path: Path, data: pp.Data) -> None:
    wrong = spoilt(data.train, 2, lambda x, y: (x.index_fill(0, torch.tensor([0]), float("nan")), y))
    words = "train: input 'input' holds 64 NaN value.* in 1 of 4 batches, first in batch 2"
    refused(searching, tmp_path, errors.DataError, words, data=replace(data, train=wrong))


def test_05_read_only_folder(searching: Searching, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(searching, tmp_path, errors.StoreError, "file", out=tmp_path / "file")
