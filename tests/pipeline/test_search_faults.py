"""The numbered faults as a user of `pp.search` meets them: refused before the run folder holds anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.pipeline import verifying
from paretoprune.store.run import RunFolder
from paretoprune.targets import OnnxRuntime
from paretoprune.targets.fresh import opener_of

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


class Tampered(OnnxRuntime):
    """Right in the process that wrote it; of some files another network's bytes are read by the next."""

    def __init__(self, names: str) -> None:
        super().__init__()
        self.names = names

    def export(self, module: nn.Module, example: Any, path: Path, *args: Any, **options: Any) -> Path:
        written = super().export(module, example, path, *args, **options)
        if self.names in path.name:
            model = onnx.load(written)
            for tensor in model.graph.initializer:
                tensor.CopyFrom(onnx.numpy_helper.from_array(1.1 * onnx.numpy_helper.to_array(tensor), tensor.name))
            onnx.save(model, written)
        return written


@pytest.fixture
def fresh(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read by a process of their own again."""
    monkeypatch.setattr(verifying, "opener_of", opener_of)


def test_38_a_file_that_is_wrong_in_a_fresh_process_is_no_candidate(
    searching: Searching, fresh: None, tmp_path: Path
) -> None:
    front = searching(target=Tampered("c01"), candidates=2)
    assert [c.name for c in front.candidates] == ["original", "c02-fp32"]
    folder = RunFolder.read(tmp_path / "run")
    assert "c01-fp32.onnx in a fresh process: output" in folder.all("failure")["c01-fp32"]["cause"]
    assert not (folder.path / "members" / "c01-fp32.onnx").exists()
    told = folder.done("candidate", "c02-fp32")
    assert told["verified"] == {**told["verified"], "by": "outputs", "samples": 96, "process": "fresh"}
    assert told["measurements"]["memory_bytes"]["runs"] == 1


def test_38_an_export_that_is_wrong_in_a_fresh_process_leaves_what_was_there(tmp_path: Path, net: nn.Module) -> None:
    path = tmp_path / "f.onnx"
    path.write_text("the last one")
    with pytest.raises(errors.ExportMismatchError, match="f.onnx in a fresh process: output 'output'"):
        pp.export(net, torch.randn(2, 1, 8, 8), path, target=Tampered("f."))
    assert path.read_text() == "the last one"
    assert list(tmp_path.iterdir()) == [path]


OPENER = """
import os, signal, time
import onnxruntime

class Runner:
    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(str(path))
        self.input_names = tuple(i.name for i in self.session.get_inputs())
    def __call__(self, feed):
        return tuple(self.session.run(None, feed))

def opened(name, threads):
    def load(path):
        if "c01" in path.name:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "c02" in path.name:
            time.sleep(60)
        return Runner(path)
    return load
"""


def test_10_11_a_file_that_hangs_or_crashes_its_process_is_rejected_alone(
    searching: Searching, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mine(OnnxRuntime):
        reopen = "opener_of_the_test:opened"

    (tmp_path / "opener_of_the_test.py").write_text(OPENER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(verifying, "TIMEOUT_S", 2.0)
    front = searching(target=Mine(), candidates=3)
    assert [c.name for c in front.candidates] == ["original", "c03-fp32"]
    failures = RunFolder.read(tmp_path / "run").all("failure")
    assert "c01-fp32.onnx failed in a fresh process: it was ended by SIGSEGV" in failures["c01-fp32"]["cause"]
    assert "c02-fp32.onnx took over 2" in failures["c02-fp32"]["cause"]
