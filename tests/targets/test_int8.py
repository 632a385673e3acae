from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from paretoprune.core.errors import DataError, ExportMismatchError, TargetError
from paretoprune.core.graph import Example
from paretoprune.targets.quantized import CALIBRATION_SAMPLES
from paretoprune.targets.session import session_options


def batches(count: int, seed: int = 2) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    return [Example.of(torch.randn(32, 3, 16, 16, generator=generator)) for _ in range(count)]


def optimised_ops(path, folder) -> Counter[str]:
    """Operators after the runtime's own graph optimisation: what really runs."""
    options = session_options(1)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def test_the_runtime_really_computes_in_eight_bits(target, net, example, tmp_path):
    path = target.export(net, example, tmp_path / "int8.onnx", "int8", batches(2))
    ops = optimised_ops(path, tmp_path)
    assert ops["QLinearConv"] == 3
    assert ops["Conv"] == ops["Gemm"] == ops["Add"] == 0
    assert ops["QLinearAdd"] == ops["QGemm"] == ops["NhwcMaxPool"] == 1
    assert ops["QuantizeLinear"] == ops["DequantizeLinear"] == 1


def test_activations_are_unsigned_and_weights_signed_per_channel(target, net, example, tmp_path):
    graph = onnx.load(target.export(net, example, tmp_path / "int8.onnx", "int8", batches(1))).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    zeros = [tensors[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {zero.data_type for zero in zeros} == {onnx.TensorProto.UINT8}
    kernels = [t for t in tensors.values() if len(t.dims) == 4]
    assert {t.data_type for t in kernels} == {onnx.TensorProto.INT8}
    sources = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    assert all(list(tensors[sources[t.name].input[1]].dims) == [t.dims[0]] for t in kernels)


def test_it_is_close_to_the_network_and_smaller(target, build_net, example, tmp_path):
    net = build_net(width=64).eval()
    fp32 = target.export(net, example, tmp_path / "fp32.onnx")
    int8 = target.export(net, example, tmp_path / "int8.onnx", "int8", batches(2))
    (x,) = batches(1, seed=9)[0].args
    with torch.no_grad():
        expected = net(x).numpy()
    (given,) = target.load(int8)({"input": x.numpy()})
    assert np.mean((given - expected) ** 2) < 0.01 * np.var(expected)
    assert not np.array_equal(given, expected)
    assert int8.stat().st_size < 0.35 * fp32.stat().st_size


def test_calibration_stops_early_and_leaves_logging_alone(target, net, example, tmp_path, capfd):
    handlers, level = list(logging.root.handlers), logging.root.level
    drawn = []

    def stream():
        for batch in batches(1) * 50:
            drawn.append(batch)
            yield batch

    target.export(net, example, tmp_path / "int8.onnx", "int8", stream())
    assert 32 * len(drawn) <= CALIBRATION_SAMPLES + 32
    assert logging.root.handlers == handlers
    assert logging.root.level == level
    assert capfd.readouterr() == ("", "")


def test_calibration_is_needed(target, net, example, tmp_path):
    with pytest.raises(TargetError, match="calibration"):
        target.export(net, example, tmp_path / "int8.onnx", "int8")
    with pytest.raises(DataError, match="no batch"):
        target.export(net, example, tmp_path / "int8.onnx", "int8", [])


class Outlier(nn.Module):
    """One channel is a million times larger and then ignored: eight bits cannot hold the others beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        with torch.no_grad():
            self.a.weight[0] *= 1e6
            self.b.weight[:, 0] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))


def test_an_int8_file_that_lost_the_signal_is_rejected(target, tmp_path):
    rows = Example.of(torch.randn(64, 6))
    with pytest.raises(ExportMismatchError, match=r"keeps -?\d.* dB"):
        target.export(Outlier(), rows, tmp_path / "int8.onnx", "int8", [rows])
    assert list(tmp_path.iterdir()) == []


class Waves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)


def test_a_network_without_an_int8_form_is_refused(target, tmp_path):
    rows = Example.of(torch.randn(8, 6))
    with pytest.raises(TargetError, match=r"int8 form here \(Sin\)"):
        target.export(Waves(), rows, tmp_path / "int8.onnx", "int8", [rows])
