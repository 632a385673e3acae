"""`pp.pack`: the packed network computes what the network computes, and says what became of each layer."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import paretoprune as pp
from paretoprune.core.errors import DataError, ModelError, UsageError
from paretoprune.pipeline.packed import PackedNetwork
from paretoprune.pipeline.packed_race import Case
from paretoprune.sparsity import load_packed, mask_of, matrix_of, operators, pattern_of, unpack, weight_of
from paretoprune.sparsity.kernels import available

pytestmark = pytest.mark.skipif(not available(), reason="the sparse kernels were not compiled")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def zeroed(weight: Tensor, pattern: str, share: float) -> None:
    matrix = matrix_of(weight.detach().numpy())
    mask = mask_of(pattern_of(pattern), np.abs(matrix), share)
    with torch.no_grad():
        weight *= torch.from_numpy(weight_of(mask, tuple(weight.shape)))


def sparse(model: nn.Module, pattern: str = "4x1", share: float = 0.7) -> nn.Module:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            zeroed(parameter, pattern, share)
    return model.eval()


class Net(nn.Module):
    """A residual with and without an activation behind it, batch norms, strides, rows of three dimensions."""

    def __init__(self, width: int = 12, stride: int = 1, kernel: int = 3, act: Any = F.relu) -> None:
        super().__init__()
        self.act = act
        self.stem = nn.Conv2d(3, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.norm.running_mean = torch.randn(width)
        self.norm.running_var = torch.rand(width) + 0.5
        self.body, self.thin = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=2)
        self.up, self.down, self.head = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = self.act(self.body(x) + x)
        x = x + self.thin(x)
        x = self.grouped(x).flatten(2).transpose(1, 2)
        x = F.layer_norm(x + F.dropout(self.down(F.gelu(self.up(x))), 0.5, self.training), x.shape[-1:])
        return self.head(x.mean(1))


@settings(max_examples=5)
@given(
    st.integers(3, 20),
    st.integers(1, 2),
    st.sampled_from([1, 3, 5]),
    st.sampled_from([F.relu, F.gelu, torch.tanh]),
    st.sampled_from(["4x1", "16x1", "unstructured", "2:4", "3x5"]),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_it_computes_what_the_network_computes(
    width: int, stride: int, kernel: int, act: Any, pattern: str, batch: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model = sparse(Net(2 * width, stride, kernel, act), pattern, 0.5)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    packed = pp.pack(model, torch.randn(2, 3, 9, 9), keep="all")
    x = torch.randn(batch, 3, 7, 11)
    with torch.no_grad():
        torch.testing.assert_close(packed(x[:, :, :, :7]), model(x[:, :, :, :7]), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_what_follows_a_layer_is_fused_and_its_dense_weight_is_gone() -> None:
    packed = pp.pack(sparse(Net()), torch.randn(2, 3, 8, 8), keep="all")
    left = [str(n.target) for n in packed.graph.nodes if n.op == "call_function"]
    assert sum("sparse_" in t for t in left) == 6
    assert not {"aten.relu.default", "aten.gelu.default", "aten.batch_norm.default", "aten.dropout.default"} & {*left}
    assert "body.weight" not in packed.state_dict()
    assert {"body.weight_value", "body.weight_at", "grouped.weight"} <= packed.state_dict().keys()
    why = {c.weight: c.why for c in packed.choices}
    assert why["grouped.weight"] == "its kernel is dilated or in groups"
    assert packed.size_bytes < sum(4 * t.numel() for t in Net().state_dict().values())


def test_a_residual_that_is_broadcast_is_not_fused() -> None:
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h) + h.mean(0, keepdim=True)

    model = sparse(Broadcast(), "unstructured")
    packed = pp.pack(model, torch.randn(4, 6), keep="all")
    x = torch.randn(5, 6)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dense_is", ["faster", "slower"])
def test_the_slower_one_goes(dense_is: str) -> None:
    def rival(case: Case) -> Any:
        return (lambda: None) if dense_is == "faster" else (lambda: [F.relu(torch.randn(300, 300)) for _ in range(9)])

    packed = pp.pack(sparse(Net()), torch.randn(2, 3, 8, 8), rival=rival)
    raced = [c for c in packed.choices if c.dense_ms is not None]
    assert len(raced) == 6
    assert {c.packed for c in raced} == {dense_is == "slower"}
    assert bool(packed.weights) == (dense_is == "slower")


def test_a_network_without_zeros_stays_dense_unraced() -> None:
    packed = pp.pack(Net().eval(), torch.randn(2, 3, 8, 8))
    assert not packed.weights
    assert all(c.dense_ms is None and "0% of its weights are zeros" in c.why for c in packed.choices if c.pattern)


def test_pytorch_exports_and_compiles_it() -> None:
    model, x = sparse(Net()), torch.randn(4, 3, 8, 8)
    packed = pp.pack(model, torch.randn(2, 3, 8, 8), keep="all")
    program = torch.export.export(packed, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(program.module()(x[:3]), expected[:3], rtol=1e-4, atol=1e-5)
        compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)


def test_eight_bits() -> None:
    model, x = sparse(Net(), "16x4"), torch.randn(64, 3, 8, 8)
    packed = pp.pack(model, x[:2], keep="all", precision="int8", calibration=[x[:32], x[32:]])
    assert {c.pattern for c in packed.choices if c.packed} == {"16x4 int8"}
    assert all(w.value.dtype == np.int8 for w in packed.weights.values())
    with torch.no_grad():
        error = (packed(x) - model(x)).square().mean() / model(x).var()
    assert 0 < error < 0.01


def test_weights_of_one_magnitude_are_stored_as_bits() -> None:
    model = nn.Sequential(nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.sign(model[0].weight) * torch.rand(16, 1))
    packed = pp.pack(model, torch.randn(2, 40), keep="all")
    assert [c.pattern for c in packed.choices] == ["signs", "16x1"]
    assert packed.state_dict()["0.weight_value"].nbytes == 16 * 2 * 4
    x = torch.randn(7, 40)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)


def test_its_weights_are_saved_and_read(tmp_path: Path) -> None:
    model = sparse(Net())
    packed = pp.pack(model, torch.randn(2, 3, 8, 8), keep="all")
    loaded = load_packed(packed.save(tmp_path / "net.safetensors"))
    assert loaded.keys() == packed.weights.keys()
    np.testing.assert_array_equal(unpack(loaded["body.weight"]), model.body.weight.detach().numpy())  # type: ignore[arg-type, union-attr]


def test_a_layer_follows_its_weight_and_goes_with_it() -> None:
    model = sparse(nn.Sequential(nn.Linear(8, 8, bias=False)), "unstructured")
    packed: PackedNetwork = pp.pack(model, torch.randn(2, 8), keep="all")
    x = torch.randn(3, 8)
    with torch.no_grad():
        first = packed(x)
        packed.get_buffer("0.weight_value").mul_(2)
        torch.testing.assert_close(packed(x), 2 * first)
        other = pp.pack(sparse(nn.Sequential(nn.Linear(8, 8, bias=False)), "unstructured"), x, keep="all")
        assert not torch.equal(other(x), packed(x))
    kept = len(operators._KERNELS)
    del packed
    gc.collect()
    with torch.no_grad():
        pp.pack(sparse(nn.Sequential(nn.Linear(4, 4)), "unstructured"), torch.randn(2, 4), keep="all")(
            torch.randn(1, 4)
        )
    assert len(operators._KERNELS) <= kept


def test_it_is_for_inference() -> None:
    packed = pp.pack(sparse(Net()), torch.randn(2, 3, 8, 8), keep="all")
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    with pytest.raises(UsageError, match="train the network before it is packed"):
        packed(x).sum().backward()
    with pytest.raises(DataError, match=r"x is torch.float64 on cpu: the sparse kernels take float32"):
        torch.ops.paretoprune.sparse_linear(
            torch.randn(2, 8).double(), torch.ones(1, 1, 1), torch.ones(1, dtype=torch.uint8), None, "unstructured",
            "mask", [1, 8], None, None, "none", [], 2,
        )  # fmt: skip


def test_what_cannot_be_is_refused() -> None:
    model, x = sparse(Net()), torch.randn(2, 3, 8, 8)
    with pytest.raises(UsageError, match='keep=\'some\': expected "measured" or "all"'):
        pp.pack(model, x, keep="some")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="precision='bf16'"):
        pp.pack(model, x, precision="bf16")
    with pytest.raises(UsageError, match="int8 needs calibration batches"):
        pp.pack(model, x, precision="int8")
    for bad in (torch.inf, torch.nan):
        with pytest.raises(ModelError, match="not finite"):
            pp.pack(model, x, precision="int8", calibration=[x, x * bad])
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan  # type: ignore[union-attr, index, operator]
    with pytest.raises(ModelError, match="NaN"):
        pp.pack(model, x)


def test_a_network_from_a_file_is_fused_alike(tmp_path: Path) -> None:
    """Its graph knows no shapes."""
    model, x = sparse(Net()), torch.randn(2, 3, 8, 8)
    pruned = pp.sparsify(model, x, pattern="4x1", sparsity=0.5)
    pp.save(pruned, tmp_path / "net")
    graph = pp.load(tmp_path / "net").program.module

    def calls(network: nn.Module) -> list[str]:
        return [str(n.target) for n in pp.pack(network, x, keep="all").graph.nodes if n.op == "call_function"]

    assert calls(graph) == calls(pruned.model)
