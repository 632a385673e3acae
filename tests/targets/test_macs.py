from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from paretoprune.core.graph import Example
from paretoprune.targets import LayerSpec, macs_of_file, workload_of_file
from paretoprune.targets.layers import layer_model
from paretoprune.targets.macs import workload_of

SPECS = {
    "conv": (LayerSpec("conv", 6, 8, (3, 3), padding=(1, 1), spatial=(10, 12)), 10 * 12 * 8 * 6 * 9),
    "strided": (LayerSpec("conv", 6, 8, (3, 3), (2, 2), (1, 1), spatial=(10, 12)), 5 * 6 * 8 * 6 * 9),
    "grouped": (LayerSpec("conv", 6, 8, (3, 3), padding=(1, 1), groups=2, spatial=(10, 12)), 10 * 12 * 8 * 3 * 9),
    "depthwise": (LayerSpec("conv", 6, 6, (5,), padding=(2,), groups=6, spatial=(40,)), 40 * 6 * 5),
    "three dimensions": (LayerSpec("conv", 2, 4, (3, 3, 3), padding=(1, 1, 1), spatial=(4, 5, 6)), 120 * 4 * 2 * 27),
    "transposed": (LayerSpec("conv_transpose", 6, 8, (2, 2), (2, 2), spatial=(5, 6)), 30 * 6 * 8 * 4),
    "linear": (LayerSpec("linear", 6, 8), 48),
    "tokens": (LayerSpec("linear", 6, 8, rows=7), 48),
}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", SPECS)
def test_a_layer_by_hand(name, precision):
    spec, macs = SPECS[name]
    work = workload_of(layer_model(spec, 1, precision))
    assert work is not None
    assert work.macs == macs
    kind = "fp32" if spec.kind == "conv_transpose" else precision
    assert work.macs_by_precision == {kind: macs}
    assert work.weight_bytes == np.prod(spec.weight_shape) * (1 if kind == "int8" else 4)


def test_a_network_and_its_int8_form_do_the_same_work(target, net, example, tmp_path):
    fp32 = target.export(net, example, tmp_path / "fp32.onnx")
    int8 = target.export(net, example, tmp_path / "int8.onnx", "int8", [example])
    macs = 256 * 16 * 27 + 2 * 256 * 16 * 144 + 2560
    assert macs_of_file(fp32) == macs_of_file(int8) == macs
    assert workload_of_file(int8).macs_by_precision == {"int8": macs}
    assert workload_of_file(fp32).weight_bytes == 4 * workload_of_file(int8).weight_bytes


class Attending(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x.transpose(1, 2), -1) @ x


def test_products_of_activations_count(target, tmp_path):
    path = target.export(Attending(), Example.of(torch.randn(3, 5, 4)), tmp_path / "a.onnx")
    assert macs_of_file(path) == 2 * 5 * 5 * 4


def open_dimension(path, size):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", size, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 2], np.ones(6))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_an_unknown_size_is_none_not_zero(tmp_path):
    path = open_dimension(tmp_path / "m.onnx", "tokens")
    assert macs_of_file(path) is None
    assert macs_of_file(path, {"x": (8, 7, 3)}) == 7 * 3 * 2


def test_an_operator_whose_work_is_not_counted_is_none_not_zero(tmp_path):
    path = open_dimension(tmp_path / "m.onnx", 4)
    assert macs_of_file(path) == 4 * 3 * 2
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Einsum", ["y", "y"], ["z"], equation="nij,nkj->nik"))
    onnx.save(model, path)
    assert macs_of_file(path) is None
