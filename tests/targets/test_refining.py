"""What is done to an int8 file beyond minima and maxima: narrower ranges, and biases that take rounding back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from paretoprune.core.graph import Example
from paretoprune.core.grid import Grid
from paretoprune.targets import OnnxRuntime, int8
from paretoprune.targets.bias import correct_biases
from paretoprune.targets.qdq import layout_of, stored_weights
from paretoprune.targets.ranges import narrow_ranges


class Net(nn.Module):
    """Grouped and plain convolutions and a linear layer that is written as a product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        answer: torch.Tensor = self.head(x.mean((2, 3)))
        return answer


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "narrow_ranges", lambda *given: None)
    monkeypatch.setattr(int8, "correct_biases", lambda *given: None)


@pytest.fixture
def files(plain: None, target: OnnxRuntime, tmp_path: Path) -> tuple[Path, Path, list[dict[str, Any]]]:
    """(fp32 file, int8 file by minima and maxima, feeds with one value in a million that is forty times larger)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = Net().eval(), torch.rand(96, 3, 64, 64) + 0.2
        x[0, 0, 0, 0] = 40.0
    fp32 = target.export(net, Example.of(x[:2]), tmp_path / "fp32.onnx")
    path = target.export(net, Example.of(x[:2]), tmp_path / "int8.onnx", "int8", [Example.of(x)])
    return fp32, path, [{"input": x[i : i + 8].numpy()} for i in range(0, 96, 8)]


def error(target: OnnxRuntime, fp32: Path, path: Path, feeds: list[dict[str, Any]]) -> np.ndarray:
    exact, given = target.load(fp32), target.load(path)
    return np.concatenate([given(f)[0] - exact(f)[0] for f in feeds[1:]])


def lost(grid: Grid, feeds: list[dict[str, Any]]) -> float:
    x = np.concatenate([f["input"] for f in feeds])
    whole = np.clip(np.rint(x / grid.scale) + grid.zero_point, grid.low, grid.high)
    return float(np.square((whole - grid.zero_point) * grid.scale - x).mean())


def test_rare_values_are_cut_off_where_that_serves_the_others(
    files: tuple[Path, Path, list[dict[str, Any]]],
) -> None:
    fp32, path, feeds = files
    before, outputs = layout_of(path).activations, {o.name for o in onnx.load(path).graph.output}
    narrow_ranges(fp32, path, feeds)
    after = layout_of(path).activations
    assert after["input"].scale < 0.7 * before["input"].scale
    assert all(after[t].scale <= before[t].scale for t in before)
    assert all(after[t].scale == before[t].scale for t in outputs & before.keys())
    assert lost(after["input"], feeds) < 0.7 * lost(before["input"], feeds)


def test_biases_take_back_what_rounding_does_on_average(
    target: OnnxRuntime, files: tuple[Path, Path, list[dict[str, Any]]]
) -> None:
    """Weights are moved by a quarter of a step, as coarser grids would."""
    fp32, path, feeds = files
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name in ("a.weight_quantized", "b.weight_quantized"):
            moved = np.clip(onnx.numpy_helper.to_array(tensor).astype(int) + 4, -64, 64).astype(np.int8)
            tensor.CopyFrom(onnx.numpy_helper.from_array(moved, tensor.name))
    onnx.save(model, path)
    wrong = abs(error(target, fp32, path, feeds).mean(axis=0)).max()
    correct_biases(fp32, path, feeds)
    assert abs(error(target, fp32, path, feeds).mean(axis=0)).max() < 0.3 * wrong
    assert stored_weights(path)["b.weight"].shape == (8, 4, 3, 3)
