"""What rejects a file, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.core.plan import Plan
from paretoprune.pipeline import verifying
from paretoprune.targets.verify import MAX_DROP, MIN_BLIND_SNR_DB
from paretoprune.tasks import task_of

CLASSES = 10
TASK = task_of("classification")


class Answering:
    """A target whose files are outputs that were prepared."""

    name, threads, precisions = "prepared", 1, ("fp32", "int8")

    def __init__(self, outputs: list[Tensor]) -> None:
        self.outputs = outputs

    def load(self, path: Path) -> Any:
        answers = iter(self.outputs)

        class Runner:
            input_names = ("input",)

            def __call__(self, feed: Any) -> tuple[Any, ...]:
                return (next(answers).numpy(),)

        return Runner()


def judged(
    wrong: float, accuracy: float = 0.9, precision: str = "int8", labels: bool = True, samples: int = 256
) -> Any:
    """The network is right on a share `accuracy`; the file gives another class on the first share `wrong`."""
    made = torch.Generator().manual_seed(0)
    y = torch.randint(0, CLASSES, (samples,), generator=made)
    said = torch.where(torch.arange(samples) % 100 < 100 * accuracy, y, (y + 1) % CLASSES)
    network = 10 * nn.functional.one_hot(said, CLASSES).float()
    file = network.clone()
    spoilt = round(wrong * samples)
    file[:spoilt] = file[:spoilt].roll(2, 1)
    batches = [(a, b) if labels else a for a, b in zip(network.split(64), y.split(64), strict=True)]
    target = Answering(list(file.split(64)))
    return verifying.verify_file(target, Path("f.onnx"), nn.Identity(), batches, precision, task=TASK)


def test_int8_is_judged_by_the_metric_where_there_are_labels() -> None:
    found = judged(0.1)
    assert (found.by, found.samples, found.process) == ("metric", 256, "this")
    assert found.figure == pytest.approx(9, abs=2)


def test_an_int8_file_that_is_broken_is_rejected_with_both_figures() -> None:
    with pytest.raises(pp.errors.ExportMismatchError, match=r"f.onnx has 5\d\.\d % accuracy on 256 .* 9\d\.\d %"):
        judged(0.4)


def test_less_accurate_is_not_broken() -> None:
    """The interval still reaches the bound: the front shows what such a file is worth."""
    assert judged(0.14).figure > 100 * MAX_DROP


def test_where_the_network_itself_is_hardly_ever_right_the_metric_proves_nothing() -> None:
    """A file that is wrong everywhere would pass by a metric of 10 %: the outputs are asked."""
    with pytest.raises(pp.errors.ExportMismatchError, match=r"keeps .* dB of the network's output"):
        judged(1.0, accuracy=0.1)
    assert judged(0.0, accuracy=0.1).by == "signal-to-noise"


def test_fp32_is_judged_by_its_outputs_whatever_the_metric_says() -> None:
    with pytest.raises(pp.errors.ExportMismatchError, match="output 'output' differs from the network"):
        judged(0.01, precision="fp32")
    assert judged(0.0, precision="fp32").by == "outputs"


@given(st.floats(-5, 40))
def test_without_labels_the_signal_to_noise_ratio_judges(db: float) -> None:
    made = torch.Generator().manual_seed(0)
    x = torch.randn(64, CLASSES, generator=made)
    noise = torch.randn(64, CLASSES, generator=made)
    noise *= x.std(correction=0) / noise.square().mean().sqrt() * 10 ** (-db / 20)

    def check() -> Any:
        return verifying.verify_file(Answering([x + noise]), Path("f"), nn.Identity(), [x], "int8", task=TASK)

    if db > MIN_BLIND_SNR_DB + 0.1:
        assert check().figure == pytest.approx(db, abs=0.1)
    elif db < MIN_BLIND_SNR_DB - 0.1:
        with pytest.raises(pp.errors.ExportMismatchError, match=r"keeps .* dB"):
            check()


@pytest.mark.parametrize("spoil", [lambda x: x[:, :5], lambda x: x * float("nan")], ids=["shape", "nan"])
def test_shapes_and_numbers_come_before_any_figure(spoil: Any) -> None:
    x = torch.randn(8, CLASSES)
    with pytest.raises(pp.errors.ExportMismatchError, match="shape|NaN"):
        verifying.verify_file(Answering([spoil(x)]), Path("f"), nn.Identity(), [x], "int8", task=TASK)


def test_as_many_batches_are_asked_as_hold_the_samples(net: nn.Module, data: pp.Data) -> None:
    class Counting(list[Any]):
        read = 0

        def __iter__(self) -> Any:
            for batch in super().__iter__():
                Counting.read += 1
                yield batch

    batches = Counting([(torch.randn(100, 1, 8, 8), torch.zeros(100, dtype=torch.long))] * 9)
    with torch.no_grad():
        target = Answering([net(x) for x, _ in batches])
    Counting.read = 0
    assert verifying.verify_file(target, Path("f"), net, batches, "fp32").samples == 300
    assert Counting.read == 3


def test_export_checks_on_the_batches_that_it_is_given(tmp_path: Path, net: nn.Module, data: pp.Data) -> None:
    path = pp.export(net, data.test[0][0][:2], tmp_path / "f.onnx", check=data.validation, task="classification")
    assert [p.name for p in tmp_path.iterdir()] == ["f.onnx"]
    assert np.isfinite(path.stat().st_size)
    with pytest.raises(pp.errors.DataError, match="no batch to check"):
        pp.export(net, data.test[0][0][:2], tmp_path / "g.onnx", check=[])
    assert [p.name for p in tmp_path.iterdir()] == ["f.onnx"]


class Auxiliary(nn.Module):
    """Half of its channels are constant, and its second head is for training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head, self.second = nn.Conv2d(8, 3, 1), nn.Linear(8, 4)
        with torch.no_grad():
            self.norm.weight[::2] = 0
            self.norm.bias.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        self.second(x.mean((2, 3)))
        result: Tensor = self.head(x).mean((2, 3))
        return result


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_clean_up_is_a_choice_of_the_export_and_of_the_plan(tmp_path: Path) -> None:
    model, x = Auxiliary().eval(), torch.randn(4, 1, 8, 8)
    whole = pp.export(model, x, tmp_path / "whole.onnx")
    bare = pp.export(model, x, tmp_path / "bare.onnx", cleanup=())
    assert "BatchNormalization" not in kinds(whole)
    assert "BatchNormalization" in kinds(bare)
    pruned = pp.apply(model, x, Plan(cleanup=("constants", "unread")).to_json())
    assert kinds(pp.export(pruned, x, tmp_path / "planned.onnx")) == kinds(bare)
    assert kinds(pp.export(pruned, x, tmp_path / "asked.onnx", cleanup=["batch norms"])) == kinds(whole)
    with pytest.raises(pp.errors.UsageError, match="cleanup: 'dead' is no list of passes; there are 'constants'"):
        pp.export(model, x, tmp_path / "f.onnx", cleanup=["dead"])
    with pytest.raises(pp.errors.PlanError, match="must be a list of passes"):
        Plan.from_json({**Plan().to_json(), "cleanup": "constants"})


def test_dead_branches_go_with_the_capture_and_constant_positions_with_pruning(tmp_path: Path) -> None:
    model, x = Auxiliary().eval(), torch.randn(4, 1, 8, 8)
    assert any("nothing reads parameter 'second.weight'" in note for note in pp.trace(model, x).notes)
    names = {t.name for t in onnx.load(pp.export(model, x, tmp_path / "f.onnx", cleanup=())).graph.initializer}
    assert not any(name.startswith("second") for name in names)
    pruned = pp.prune(model, x, ratio=0.5, criterion="bn-scale", calibration=[torch.randn(64, 1, 8, 8)])
    assert list(pruned.kept["conv.weight"][0]) == [1, 3, 5, 7]
    with torch.no_grad():
        torch.testing.assert_close(pruned.model(x), model(x), atol=1e-3, rtol=1e-3)
