"""Figures of the answers in a search: taken on the exported file, judged by limits, explained, and absent where they
cannot be taken or were not recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional as F

import paretoprune as pp
from paretoprune.core.quality import KEYS, quality_of
from paretoprune.pipeline import reporting
from paretoprune.report.html import render
from paretoprune.store.run import RunFolder

FREE = ("macro_precision", "macro_recall", "macro_f1", "loss", "recovery_ratio", "calibration_error")


@pytest.fixture(scope="module")
def answers_of() -> Callable[[pp.Candidate, pp.Data], tuple[np.ndarray, np.ndarray]]:
    """(logits, labels) of a candidate's file on the test set, by nothing but onnxruntime."""
    import onnxruntime

    def ask(candidate: pp.Candidate, data: pp.Data) -> tuple[np.ndarray, np.ndarray]:
        session = onnxruntime.InferenceSession(str(candidate.path))
        name = session.get_inputs()[0].name
        found = [session.run(None, {name: x.numpy()})[0] for x, _ in data.test]
        return np.concatenate(found), np.concatenate([y.numpy() for _, y in data.test])

    return ask


def test_a_search_with_a_limit_on_f1(
    searching: Callable[..., pp.Front], data: pp.Data, answers_of: Any, tmp_path: Path
) -> None:
    front = searching(limits=["f1 drop <= 60 points", "calibration error <= 60 %"])
    for candidate in front.candidates:
        logits, labels = answers_of(candidate, data)
        own = candidate.measurements
        assert {*FREE, "generalisation_gap"} <= own.keys()
        assert {f"validation_{key}" for key in FREE} <= own.keys()
        assert own["macro_f1"].value == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))
        assert own["macro_f1"].low <= own["macro_f1"].value <= own["macro_f1"].high
        expected = float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)))
        assert own["loss"].value == pytest.approx(expected, rel=1e-5)
        assert own["recovery_ratio"].value == pytest.approx(front.original.value("loss") / own["loss"].value)
        assert own["generalisation_gap"].runs == 96  # as many of the 256 training samples as the test set has
        assert not any(key.startswith("robust") for key in own)
    row = front.to_rows()[-1]
    assert set(KEYS) <= row.keys()
    assert row["robust_fgsm"] is None
    assert row["validation_figures"]["macro_f1"] == front.candidates[-1].value("validation_macro_f1")
    json.dumps(front.to_rows(), allow_nan=False)
    assert front.best("f1") in front.members
    check_why(front, tmp_path / "run")


def check_why(front: pp.Front, folder: Path) -> None:
    """What is told of each member agrees with its plan and its file, and reaches the page."""
    for candidate in front.candidates:
        why = candidate.why()
        assert why == front.explain(candidate.name)
        assert {a.axis: a.kept for a in why.axes} == {a: len(k) for a, k in candidate.plan.kept.items()}
        assert why.unknown == ()
        json.dumps(why.to_json(), allow_nan=False)
    why = next(c.why() for c in front.candidates if c.plan.kept)
    text = str(why)
    for axis in why.axes:
        assert axis.parameters > 0
        assert axis.macs > 0
        assert axis.curve[-1] == (axis.size, 0.0)
        assert axis.damage is not None
        assert f"{axis.kept} of {axis.size}" in text
    assert "Recovery: reconstructed" in text
    page = render(reporting.report_data(RunFolder.read(folder)))
    for words in ("The answers in detail", "Why: what each member cut", 'class="curve"', "Recovery: reconstructed"):
        assert words in page


def test_a_search_with_a_limit_on_fgsm(searching: Callable[..., pp.Front], data: pp.Data, net: nn.Module) -> None:
    before = {k: v.clone() for k, v in net.state_dict().items()}
    front = searching(
        limits=["robust accuracy (fgsm) >= 2 %"], metrics=["robust accuracy (noise)"], robust_samples=40, candidates=1
    )
    for candidate in front.candidates:
        fgsm = candidate.measurements["robust_fgsm"]
        assert fgsm.runs == candidate.measurements["validation_robust_fgsm"].runs == 40
        assert fgsm.note.startswith("eps 8/255 of the input's range")
        assert fgsm.value <= candidate.accuracy + 0.1
        assert "standard deviation 0.08" in candidate.measurements["robust_noise"].note
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert "eps 8/255" in render(reporting.report_data(RunFolder.read(front.candidates[0].path.parents[1])))


def test_figures_that_the_task_cannot_give_are_absent_and_said(
    searching: Callable[..., pp.Front], data: pp.Data, tmp_path: Path
) -> None:
    def soft(batches: Any) -> list[tuple[Tensor, Tensor]]:
        return [(x, F.one_hot(y, 4).float()) for x, y in batches]

    def right(output: Any, labels: Any) -> Tensor:
        return (output.argmax(1) == labels.argmax(1)).float()

    task = pp.Task("soft", lambda output, labels: F.mse_loss(output, labels), right)
    soft_data = pp.Data(soft(data.train), soft(data.validation), soft(data.test))
    front = searching(data=soft_data, task=task, candidates=1)
    for candidate in front.candidates:
        assert "macro_f1" not in candidate.measurements
        assert "the labels are not classes" in candidate.absent["macro_f1"]
        assert candidate.measurements["loss"].note.startswith("no interval")
    row = front.to_rows()[0]
    assert row["macro_f1"] is None
    assert row["loss"] > 0
    assert any("the labels are not classes" in text for text in front.candidates[-1].why().unknown)
    page = render(reporting.report_data(RunFolder.read(tmp_path / "run")))
    assert "What could not be taken" in page
    with pytest.raises(pp.errors.LimitError, match=r"'f1 >= 50 %' cannot be judged: the labels are not classes"):
        searching(data=soft_data, task=task, limits=["f1 >= 50 %"], out=tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"metrics": ["f2"]}, "unknown metric 'f2'"),
        ({"metrics": ["robust accuracy (fgms)"]}, r"did you mean 'robust accuracy \(fgsm\)'"),
        ({"robust_samples": 0}, "robust_samples=0"),
        ({"attack_eps": -1.0}, "attack_eps=-1.0"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused(searching: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(pp.errors.UsageError, match=says):
        searching(**options)


def test_blur_of_what_is_no_image_is_refused_before_any_work(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [(torch.rand(8, 6), torch.randint(0, 3, (8,)))]
    data = pp.Data(batches, batches, batches)
    with pytest.raises(pp.errors.DataError, match=r"robust accuracy \(blur\) is for images"):
        pp.search(net, torch.rand(2, 6), data, metrics=["robust accuracy (blur)"], out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


NEW_KINDS = ("widths", "cuts", "original losses", "input range")


def older(run: Path, folder: Path) -> Path:
    """The same run as the version before these figures would have journaled it."""
    view = RunFolder.read(run)
    shutil.copytree(run / "members", folder / "members")
    with RunFolder.open(folder, view.identity or {}) as written:
        for kind, entries in view._payloads.items():
            for key, payload in entries.items():
                if kind == "candidate":
                    taken = payload["measurements"]
                    payload = {k: v for k, v in payload.items() if k not in ("absent", "classes")}
                    plain = ("accuracy", "validation")
                    kept = {k: m for k, m in taken.items() if k in plain or k.removeprefix("validation_") not in KEYS}
                    payload["measurements"] = kept
                if kind == "_seal":
                    written.seal(key)
                elif not kind.startswith("_") and kind not in NEW_KINDS:
                    written.record(kind, key, payload)
    return folder


def test_a_folder_of_an_earlier_version_is_read_and_resumed(searching: Callable[..., pp.Front], tmp_path: Path) -> None:
    first = searching(limits=["accuracy drop <= 60 points"])
    settings = (RunFolder.read(tmp_path / "run").identity or {})["settings"]
    assert not {"metrics", "robust_samples", "attack_eps"} & settings.keys()
    folder = older(tmp_path / "run", tmp_path / "older")
    front = pp.read_front(folder)
    assert [c.name for c in front.members] == [c.name for c in first.members]
    for candidate, row in zip(front.candidates, front.to_rows(), strict=True):
        assert row["macro_f1"] is None
        assert candidate.absent == {}
    why = next(c.why() for c in front.candidates if c.plan.kept)
    assert len(why.unknown) == 3
    assert "did not record the counts per class" in str(why)
    assert "damage alone" in str(why)
    page = render(reporting.report_data(RunFolder.read(folder)))
    assert "The answers in detail" not in page
    assert "Not known: what went with each axis" in page
    again = searching(limits=["accuracy drop <= 60 points"], out=folder)
    assert {c.name: c.value("latency_ms") for c in again.candidates} == {
        c.name: c.value("latency_ms") for c in front.candidates
    }


def test_names_and_keys_lead_to_the_same_figure() -> None:
    assert quality_of("f1") is quality_of("macro_f1")
    assert quality_of("Robust_accuracy (PGD)").key == "robust_pgd"
    assert quality_of("generalization gap").key == "generalisation_gap"
