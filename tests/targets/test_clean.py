"""Files keep the names of the weights, store nothing twice, and compute what they computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paretoprune.core.graph import Example
from paretoprune.targets import OnnxRuntime
from paretoprune.targets.clean import PASSES, Graph, tidied
from paretoprune.targets.onnx_file import read_model


def exported(module: nn.Module, example: Tensor, path: Path) -> onnx.ModelProto:
    return read_model(OnnxRuntime().export(module.eval(), Example.of(example), path))[0]


def names(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.proj = nn.Linear(4, 5)
        self.rnn = nn.LSTM(5, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().flatten(2).transpose(1, 2)
        return self.rnn(self.proj(x))[0]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embed(ids) @ self.embed.weight.T


def test_weights_keep_their_names(tmp_path: Path) -> None:
    model = exported(Layers(), torch.randn(2, 3, 6, 6), tmp_path / "a.onnx")
    kept = names(model)
    assert kept["conv.weight"] == (4, 3, 3, 3)
    assert kept["conv.bias"] == (4,)  # the batch norm's
    assert kept["proj.weight^T"] == (4, 5)
    assert not [n for n in model.graph.node if n.op_type == "BatchNormalization"]
    lstm = next(n for n in model.graph.node if n.op_type == "LSTM")
    assert all(name in kept for name in lstm.input[1:4])


def test_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    model = exported(Tied(), torch.randint(0, 300, (2, 7)), tmp_path / "a.onnx")
    assert sum(np.prod(dims) for dims in names(model).values()) < 2 * 300 * 16


def test_a_shared_convolution_is_not_scaled_twice(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.conv(self.first(self.conv(x)).relu()))

    module = Shared()
    for norm in (module.first, module.second):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.running_mean)
    kept = names(exported(module, torch.randn(2, 4, 5, 5), tmp_path / "a.onnx"))  # the export compares the outputs
    assert {"conv.weight", "conv.weight:1"} <= kept.keys()


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(["conv", "grouped", "transposed", "transposed groups", "linear"]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_batch_norm_folds_into_its_layer(
    kind: str, bias: bool, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torch.manual_seed(seed)
    layers = {
        "conv": (nn.Conv2d(4, 6, 3, bias=bias), nn.BatchNorm2d(6)),
        "grouped": (nn.Conv2d(4, 8, 3, groups=4, bias=bias), nn.BatchNorm2d(8)),
        "transposed": (nn.ConvTranspose2d(4, 6, 3, bias=bias), nn.BatchNorm2d(6)),
        "transposed groups": (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=bias), nn.BatchNorm2d(6)),
        "linear": (nn.Linear(4, 6, bias=bias), nn.BatchNorm1d(6)),
    }
    layer, norm = layers[kind]
    for tensor in (norm.weight, norm.running_var):
        nn.init.uniform_(tensor, 0.2, 3)
    nn.init.normal_(norm.running_mean)
    example = torch.randn(2, 4) if kind == "linear" else torch.randn(2, 4, 5, 5)
    folder = tmp_path_factory.mktemp("folded")
    model = exported(nn.Sequential(layer, norm, nn.Tanh()), example, folder / "a.onnx")
    left = [n.op_type for n in model.graph.node if n.op_type == "BatchNormalization"]
    assert len(left) == (kind in ("transposed groups",) or (kind == "linear" and not bias and "MatMul" in _ops(model)))


def _ops(model: onnx.ModelProto) -> set[str]:
    return {n.op_type for n in model.graph.node}


def test_every_pass_can_be_left_out(tmp_path: Path) -> None:
    model = exported(Layers(), torch.randn(2, 3, 6, 6), tmp_path / "a.onnx")
    assert names(tidied(model, ())) == names(tidied(model, tuple(PASSES)))  # it is tidy by now
    graph = Graph(model)
    assert graph.free_name("conv.weight") == "conv.weight:1"
