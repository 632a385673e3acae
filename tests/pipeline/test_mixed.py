"""Mixed precision: the layers that int8 hurts are found and stay in fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import paretoprune as pp
from paretoprune import graph as graphs
from paretoprune.core.errors import TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.pipeline.fake_graph import fake_graph
from paretoprune.pipeline.mixed import Layers, mixed_bits
from paretoprune.targets import find_target


class Lopsided(nn.Module):
    """Between the first layer and the second a channel is a hundred times larger than others, and little comes of it.

    That tensor is quantized as long as either of the two layers is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 64)
        with torch.no_grad():
            self.first.weight[0] *= 100
            self.second.weight[:, 0] *= 0.01

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.third(torch.relu(self.second(torch.relu(self.first(x)))))
        return 4 * answer


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Lopsided().eval()


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(64, 12, generator=torch.Generator().manual_seed(1))


def test_sensitive_layers_are_told_from_the_others(net: nn.Module, rows: Tensor) -> None:
    traced = graphs.trace(net, rows[:2])
    layers = Layers(traced, fake_graph(traced, find_target("onnxruntime"), [Example.of(rows)]), [Example.of(rows)])
    losses = {s.weight: s.loss for s in layers.sensitivities()}
    assert losses.keys() == {"first.weight", "second.weight", "third.weight"}
    assert min(losses["first.weight"], losses["second.weight"]) > 10 * losses["third.weight"]
    assert sum(s.macs for s in layers.sensitivities()) == pytest.approx(1)
    assert layers.loss(["second.weight"]) > 0.5 * layers.loss()
    assert layers.loss(["first.weight", "second.weight"]) < 0.2 * layers.loss()
    assert {s.weight for s in layers.chosen(0.5)} == {"first.weight", "second.weight"}
    assert layers.loss() > 0  # all switched on again


def test_the_file_keeps_them_in_fp32_and_is_nearer(net: nn.Module, rows: Tensor, tmp_path: Path) -> None:
    target = find_target("onnxruntime")
    int8 = pp.export(net, rows[:2], tmp_path / "int8.onnx", precision="int8", calibration=[rows])
    mixed = pp.export(net, rows[:2], tmp_path / "mixed.onnx", precision="mixed", calibration=[rows])
    stored = {t.name: t.data_type for t in onnx.load(mixed).graph.initializer}
    assert stored["first.weight"] == stored["second.weight"] == onnx.TensorProto.FLOAT
    assert stored["third.weight_quantized"] == onnx.TensorProto.INT8
    exact = net(rows).detach().numpy()
    errors = [np.square(target.load(f)({"input": rows.numpy()})[0] - exact).mean() for f in (int8, mixed)]
    assert errors[1] < 0.3 * errors[0]


def test_it_needs_data_and_a_share(net: nn.Module, rows: Tensor, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="mixed needs calibration"):
        pp.export(net, rows[:2], tmp_path / "mixed.onnx", precision="mixed")
    with pytest.raises(UsageError, match="repaired=0"):
        mixed_bits(find_target("onnxruntime"), net, Example.of(rows[:2]), [Example.of(rows)], 0)
    assert list(tmp_path.iterdir()) == []
