"""A search on a target whose files are not ONNX."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import paretoprune as pp
from paretoprune.pipeline import demo
from paretoprune.pipeline.targets import find_target
from paretoprune.store.run import RunFolder
from paretoprune.targets import fingerprint_id

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def trained(train: tuple[torch.Tensor, torch.Tensor]) -> nn.Module:
    """The demo's network, narrower and shallower, after two epochs."""
    torch.manual_seed(0)
    model = demo.DigitsNet((16, 32), 1).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for images, labels in 2 * list(zip(train[0].split(64), train[1].split(64), strict=True)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def test_the_digits_on_pytorch(tmp_path: Path) -> None:
    """From the trained network to a front of files that PyTorch runs, each with every figure; it resumes."""
    sets = demo.digits()
    model = trained(sets["train"])

    def search() -> pp.Front:
        return pp.search(
            model,
            sets["train"][0][:1],
            demo.data(sets),
            target="torch",
            out=tmp_path / "run",
            candidates=2,
            steps=0,
            align=16,
            evaluations=4,
            calibration_samples=64,
            limits=["macs <= 0.9x"],
        )

    front = search()
    mark = fingerprint_id(find_target("torch").fingerprint())
    assert front.original.path.name == "original.safetensors"
    assert {c.precision for c in front.candidates} == {"fp32"}
    for member in front.candidates:
        assert member.path.suffix == ".safetensors"
        assert {"latency_ms", "speedup", "size_bytes", "macs", "accuracy", "energy_mj"} <= member.measurements.keys()
        assert member.measurements["latency_ms"].target == mark
        assert find_target("torch").load(member.path).input_names == ("input",)
    assert all(c.macs < front.original.macs for c in front.candidates if not c.original)
    before = dict(RunFolder.read(tmp_path / "run").all("candidate"))
    search()
    assert dict(RunFolder.read(tmp_path / "run").all("candidate")) == before
