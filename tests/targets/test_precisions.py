"""Every precision that a target offers: written, reloaded, compared; single layers in another one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import paretoprune as pp
from paretoprune.core.errors import ExportMismatchError, PlanError, TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.precision import PRECISIONS
from paretoprune.targets import OnnxRuntime, find_target, openvino
from paretoprune.targets.macs import workload_of_file
from paretoprune.targets.weights import rounded, weights_of

NEEDED = "needs the extra openvino: pip install 'paretoprune[openvino]'"
STORED = {"fp32": 1.0, "fp16": 0.55, "int8-weights": 0.35, "int8": 0.45}
"""Size over the fp32 file's of a network of 54,000 weights, at most."""


@pytest.fixture
def wide(build_net: Any) -> nn.Module:
    return build_net(width=48).eval()  # type: ignore[no-any-return]


class Words(nn.Module):
    """A table of words, a recurrent layer and a head that shares nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer, self.head = nn.Embedding(200, 24), nn.LSTM(24, 32, batch_first=True), nn.Linear(32, 5)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.layer(self.table(words))[0][:, -1])
        return answer


@pytest.fixture
def words() -> tuple[Words, Example]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Words().eval(), Example.of(torch.randint(0, 200, (6, 9)))


def kinds(path: Any) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("precision", [p for p in OnnxRuntime.precisions if p != "int8-dynamic"])
def test_each_is_as_near_as_it_says_and_as_small(
    target: OnnxRuntime, wide: nn.Module, example: Example, tmp_path: Any, precision: str
) -> None:
    fp32 = target.export(wide, example, tmp_path / "fp32.onnx")
    path = target.export(
        wide, example, tmp_path / "net.onnx", precision, [example] * 8 if precision == "int8" else None
    )
    assert path.stat().st_size <= STORED[precision] * fp32.stat().st_size
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        exact = wide(x).numpy()
    (given,) = target.load(path)({"input": x.numpy()})
    noise = np.mean((given - exact) ** 2) / np.var(exact)
    assert noise < 10 ** (-min(PRECISIONS[precision].min_snr_db, 100) / 10)
    assert (noise > 1e-10) == (precision != "fp32")


def test_dynamic_int8_is_for_linear_and_recurrent_layers(
    target: OnnxRuntime, words: tuple[Words, Example], tmp_path: Any
) -> None:
    net, example = words
    fp32 = target.export(net, example, tmp_path / "fp32.onnx")
    path = target.export(net, example, tmp_path / "net.onnx", "int8-dynamic")
    found = kinds(path)
    assert found["MatMulInteger"] == found["DynamicQuantizeLSTM"] == 1
    assert found["LSTM"] == found["Gemm"] == found["QuantizeLinear"] == 0
    assert path.stat().st_size < 0.45 * fp32.stat().st_size  # the table is in 8 bits too
    with pytest.raises(TargetError, match=r"no.* int8-dynamic form here \(Relu\)"):
        target.export(nn.ReLU(), Example.of(torch.randn(4, 3)), tmp_path / "none.onnx", "int8-dynamic")


def test_of_a_table_only_the_rows_that_are_picked_are_restored(
    target: OnnxRuntime, words: tuple[Words, Example], tmp_path: Any
) -> None:
    net, example = words
    graph = onnx.load(target.export(net, example, tmp_path / "net.onnx", "int8-weights")).graph
    stored = {t.name: t for t in graph.initializer}
    assert stored["table.weight_quantized"].data_type == onnx.TensorProto.INT8
    restored = [n.input[0] for n in graph.node if n.op_type == "DequantizeLinear"]
    assert "table.weight_quantized" not in restored
    assert "head.weight_quantized" in restored


def test_single_layers_stay_in_fp32_or_only_their_weights_are_stored_in_8_bits(
    target: OnnxRuntime, net: nn.Module, example: Example, tmp_path: Any
) -> None:
    bits = {"stem.weight": "fp32", "block.*": "int8-weights"}
    path = pp.export(net.eval(), example.args[0], tmp_path / "net.onnx", "onnxruntime", "int8", [example.args[0]], bits)
    graph = onnx.load(path).graph
    stored = {t.name: t.data_type for t in graph.initializer}
    assert stored["stem.weight"] == onnx.TensorProto.FLOAT
    assert stored["block.a.weight_quantized"] == stored["head.weight_quantized"] == onnx.TensorProto.INT8
    work = workload_of_file(path)
    assert work is not None
    assert work.macs_by_precision["int8"] == 10 * 16 * 16
    assert work.weight_bytes == 3 * 16 * 9 * 4 + 2 * 16 * 16 * 9 + 10 * 16 * 16


@pytest.mark.parametrize(
    ("bits", "error", "says"),
    [
        ({"block.a.wieght": "fp32"}, PlanError, r"'block.a.wieght' is no weight of a layer.*block.a.weight"),
        (
            {"stem.weight": "int4"},
            UsageError,
            "'int4'; in a file of int8 a layer may be fp32, int8-weights, fp16, int8",
        ),
        ({"none*": "fp32"}, PlanError, "fits none"),
    ],
)
def test_bits_that_mean_nothing_are_refused(
    net: nn.Module, example: Example, tmp_path: Any, bits: dict[str, str], error: type[Exception], says: str
) -> None:
    x = example.args[0]
    with pytest.raises(error, match=says):
        pp.export(net.eval(), x, tmp_path / "net.onnx", "onnxruntime", "int8", [x], bits)
    assert list(tmp_path.iterdir()) == []


def test_the_bits_of_a_plan_are_carried_out(net: nn.Module, example: Example, tmp_path: Any) -> None:
    x = example.args[0]
    pruned = pp.apply(net.eval(), x, pp.Plan(bits={"head.*": "fp32"}))
    graph = onnx.load(pp.export(pruned, x, tmp_path / "net.onnx", precision="int8", calibration=[x])).graph
    assert "head.weight" in {t.name for t in graph.initializer}


def test_an_unknown_precision_lists_what_there_is(net: nn.Module, example: Example, tmp_path: Any) -> None:
    with pytest.raises(
        UsageError, match=r"'int8-dyn' is not offered by onnxruntime; it has fp32, int8, .*did you mean"
    ):
        pp.export(net, example.args[0], tmp_path / "net.onnx", precision="int8-dyn")


class Own:
    name, threads, precisions = "own", 1, ("fp32",)

    def fingerprint(self) -> dict[str, str]:
        return {}

    def export(self, module: Any, example: Any, path: Any, precision: str = "fp32", calibration: Any = None) -> Any:
        return path

    def load(self, path: Any) -> Any:
        raise NotImplementedError


def test_a_target_that_knows_no_single_layers_says_so(net: nn.Module, example: Example, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="target own writes all layers in one precision"):
        pp.export(net, example.args[0], tmp_path / "a.onnx", Own(), bits={"*": "fp32"})


def test_what_half_precision_cannot_hold_is_named(target: OnnxRuntime, tmp_path: Any) -> None:
    net, rows = nn.Sequential(nn.Linear(6, 4)), Example.of(torch.randn(8, 6))
    with torch.no_grad():
        net[0].weight[0] *= 1e6
    with pytest.raises(TargetError, match=r"0.weight holds .*half precision at most 65504"):
        target.export(net, rows, tmp_path / "net.onnx", "fp16")


def test_a_file_below_the_bound_of_its_precision_is_refused(
    target: OnnxRuntime, net: nn.Module, example: Example, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paretoprune.targets.weights.LARGEST", 2)  # two bits
    with pytest.raises(ExportMismatchError, match=r"the int8-weights file keeps .* at least 15 dB"):
        target.export(net, example, tmp_path / "net.onnx", "int8-weights")
    assert list(tmp_path.iterdir()) == []


def test_rounding_is_by_channel_and_keeps_zeros() -> None:
    value = np.array([[1.0, -0.5], [100.0, 50.0], [0.0, 0.0]], np.float32)
    whole, scale = rounded(value, 0)
    assert whole.tolist() == [[127, -64], [127, 64], [0, 0]]
    np.testing.assert_allclose(whole * scale[:, None], value, atol=0.5 * 100 / 127)


def test_weights_are_found_with_their_layers(target: OnnxRuntime, words: tuple[Words, Example], tmp_path: Any) -> None:
    net, example = words
    found = weights_of(onnx.load(target.export(net, example, tmp_path / "net.onnx")).graph)
    assert {"table.weight", "head.weight"} <= {w.parameter for w in found}
    assert [w.parameter for w in found if w.looked_up] == ["table.weight"]


@pytest.mark.parametrize("precision", ["int8-weights", "fp16"])
def test_openvino_stores_weights_too(net: nn.Module, example: Example, tmp_path: Any, precision: str) -> None:
    pytest.importorskip("openvino", reason=NEEDED)
    target = find_target("openvino")
    fp32 = target.export(net.eval(), example, tmp_path / "fp32.onnx")
    path = target.export(net.eval(), example, tmp_path / "net.onnx", precision)
    assert path.stat().st_size < 0.75 * fp32.stat().st_size


def test_bf16_is_refused_where_the_processor_would_not_compute_in_it(
    net: nn.Module, example: Example, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason=NEEDED)
    target = find_target("openvino")
    if openvino.has_bf16():
        path = target.export(net.eval(), example, tmp_path / "net.onnx", "bf16")
        assert workload_of_file(path).macs_by_precision.keys() == {"bf16"}  # type: ignore[union-attr]
    monkeypatch.setattr(openvino, "has_bf16", lambda: False)
    with pytest.raises(TargetError, match="has no bfloat16 instructions.*use fp16"):
        target.export(net.eval(), example, tmp_path / "net.onnx", "bf16")


def test_openvino_leaves_single_layers_in_fp32(net: nn.Module, example: Example, tmp_path: Any) -> None:
    pytest.importorskip("nncf", reason=NEEDED)
    x = example.args[0]
    path = pp.export(net.eval(), x, tmp_path / "net.onnx", "openvino", "int8", [x], {"head.weight": "fp32"})
    stored = {t.name: t.data_type for t in onnx.load(path).graph.initializer}
    assert stored["head.weight"] == onnx.TensorProto.FLOAT
    assert onnx.TensorProto.INT8 in stored.values()
