"""Target sparse-cpu: packed layers in an exported file, beside ONNX Runtime's dense ones."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.core.errors import FileError, TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.layers import LayerSpec
from paretoprune.pipeline.targets import Packing, find_target
from paretoprune.sparsity import kernels
from paretoprune.targets import OnnxRuntime, macs_of_file, measure_layer, workload_of_file
from paretoprune.targets.sparse_cpu import DOMAIN, SparseCpu

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the sparse kernels were not compiled")
EXAMPLE = Example.of(torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)))


class Net(nn.Module):
    """Two packed layers behind each other, dense parts between, and an output of a packed layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, stride=2)
        self.norm, self.c = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16 * 9, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.norm(self.b(self.a(x))))
        x = torch.max_pool2d(x + torch.relu(self.c(x) + x), 2)
        return self.head(x.flatten(1)), x


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pp.sparsify(Net().eval(), EXAMPLE, pattern="4x1", sparsity=0.7).model.eval()


@pytest.fixture(scope="module")
def file(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return everything().export(net, EXAMPLE, tmp_path_factory.mktemp("sparse") / "net.onnx")


def everything(threads: int = 1) -> SparseCpu:
    return SparseCpu(threads, Packing(), keep="all")


def feed(batch: int = 2, seed: int = 1) -> dict[str, NDArray[Any]]:
    return {"input": np.random.default_rng(seed).standard_normal((batch, 3, 12, 12)).astype(np.float32)}


def packed_nodes(path: Path) -> list[str]:
    return [n.op_type for n in onnx.load(str(path)).graph.node if n.domain == DOMAIN]


def answers(path: Path, given: dict[str, NDArray[Any]], threads: int = 1) -> tuple[NDArray[Any], ...]:
    return find_target("sparse-cpu", threads).load(path)(given)


def expected(net: nn.Module, given: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    with torch.no_grad():
        return [y.numpy() for y in net(torch.from_numpy(given["input"]))]


def test_a_file_holds_packed_layers_and_computes_what_the_network_computes(net: nn.Module, file: Path) -> None:
    assert sorted(packed_nodes(file)) == ["SparseConv"] * 3 + ["SparseLinear"]
    runner = find_target("sparse-cpu").load(file)
    for batch in (1, 2, 5, 1):
        for ours, theirs in zip(runner(feed(batch, batch)), expected(net, feed(batch, batch)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_its_size_is_that_of_the_packed_weights(net: nn.Module, file: Path, tmp_path: Path) -> None:
    dense = OnnxRuntime().export(net, EXAMPLE, tmp_path / "dense.onnx")
    saved = dense.stat().st_size - file.stat().st_size
    zeros = sum(int((p == 0).sum()) for p in net.parameters() if p.ndim > 1)
    assert 0.7 * 4 * zeros < saved < 4 * zeros
    assert macs_of_file(file) == macs_of_file(dense)
    ours, theirs = workload_of_file(file), workload_of_file(dense)
    assert ours is not None
    assert theirs is not None
    assert ours.weight_bytes < 0.5 * theirs.weight_bytes


def test_other_runtimes_refuse_it_by_name(file: Path) -> None:
    with pytest.raises(TargetError, match="paretoprune"):
        OnnxRuntime().load(file)


def test_several_threads_and_another_instruction_set_give_the_same(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = answers(file, feed())
    for one, other in zip(plain, answers(file, feed(), threads=2), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    monkeypatch.setenv("PARETOPRUNE_KERNELS", "portable")
    assert find_target("sparse-cpu").fingerprint()["kernels"] == "portable"
    for one, other in zip(plain, answers(file, feed()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_it_is_chosen_by_measurement(tmp_path: Path) -> None:
    """A large layer of which a twentieth is left is faster by far; one without zeros never is."""
    model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 8)).eval()
    example = Example.of(torch.randn(2, 32, 512))
    found = pp.sparsify(model, example, pattern={"0.weight": "16x1@0.95"}).model
    target = find_target("sparse-cpu")
    assert packed_nodes(target.export(found, example, tmp_path / "sparse.onnx")) == ["SparseLinear"]
    dense = target.export(model, example, tmp_path / "dense.onnx")
    assert not packed_nodes(dense)
    OnnxRuntime().load(dense)


def test_eight_bits(tmp_path: Path) -> None:
    model = pp.sparsify(Net().eval(), EXAMPLE, pattern="16x4", sparsity=0.5).model.eval()
    batches = [Example.of(torch.from_numpy(feed(16, seed)["input"])) for seed in range(3)]
    path = everything().export(model, EXAMPLE, tmp_path / "int8.onnx", "int8", batches)
    types = {t.name: t.data_type for t in onnx.load(str(path)).graph.initializer}
    assert {v for n, v in types.items() if n.endswith("_value")} == {onnx.TensorProto.INT8}
    for ours, theirs in zip(answers(path, feed()), expected(model, feed()), strict=True):
        assert np.square(ours - theirs).mean() < 0.01 * theirs.var()
    with pytest.raises(TargetError, match="int8 needs calibration batches"):
        everything().export(model, EXAMPLE, tmp_path / "int8.onnx", "int8")
    with pytest.raises(UsageError, match="precision 'bf16' is not offered by sparse-cpu"):
        everything().export(model, EXAMPLE, tmp_path / "int8.onnx", "bf16")


def test_a_file_without_a_layer_in_8_bits_is_not_called_so(tmp_path: Path) -> None:
    model, example = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).eval(), Example.of(torch.randn(2, 8))

    class Never(Packing):
        def pack(self, module: Any, example: Any, how: Any) -> Any:
            return super().pack(module, example, replace(how, rival=lambda case: lambda: None))

    with pytest.raises(TargetError, match="8 bits gain nothing for this network on target 'sparse-cpu' here"):
        SparseCpu(1, Never()).export(model, example, tmp_path / "x.onnx", "int8", [Example.of(torch.randn(40, 8))])
    assert not (tmp_path / "x.onnx").exists()


def test_layers_are_timed_alone() -> None:
    target = find_target("sparse-cpu")
    spec = LayerSpec("linear", 512, 512, rows=64)
    dense, sparse = (
        measure_layer(target, spec),
        measure_layer(target, LayerSpec(**{**vars(spec), "zeros": "16x1@0.95"})),
    )
    assert sparse < dense
    with pytest.raises(TargetError, match="without groups"):
        measure_layer(target, LayerSpec("conv", 8, 8, (3, 3), groups=8, spatial=(8, 8), zeros="16x1@0.9"))


# -- what may be wrong -----------------------------------------------------------------------------------------------


def changed(file: Path, to: Path, change: Any) -> Path:
    model = onnx.load(str(file))
    change(model)
    onnx.save(model, str(to))
    return to


def rewrite(model: ModelProto, ending: str, change: Any) -> None:
    tensor = next(t for t in model.graph.initializer if t.name.endswith(ending))
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor))), tensor.name))


def attribute(model: ModelProto, name: str) -> Any:
    node = next(n for n in model.graph.node if n.domain == DOMAIN)
    return next(a for a in node.attribute if a.name == name)


def rename(model: ModelProto) -> None:
    next(n for n in model.graph.node if n.domain == DOMAIN).op_type = "SparseAttention"


@pytest.mark.fault
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: rewrite(m, "_at", lambda a: a[:-1]), "truncated"),
        (lambda m: rewrite(m, "_at", lambda a: a | 255), "damaged"),
        (lambda m: rewrite(m, "_value", lambda a: a[1:]), "values of shape"),
        (lambda m: rewrite(m, "_value", lambda a: a * np.nan), "not finite"),
        (lambda m: rewrite(m, "_value", lambda a: a.astype(np.float64)), "float64"),
        (lambda m: setattr(attribute(m, "pattern"), "s", b"7x7"), "damaged"),
        (lambda m: setattr(attribute(m, "coding"), "s", b"morse"), "coded as 'morse'"),
        (lambda m: setattr(attribute(m, "activation"), "s", b"swish"), "swish"),
        (lambda m: attribute(m, "shape").ints.__setitem__(0, 10**9), "damaged"),
        (rename, "SparseAttention of a newer version"),
    ],
)
def test_a_damaged_file_is_refused_and_never_read_out_of_bounds(
    file: Path, tmp_path: Path, change: Any, why: str
) -> None:
    with pytest.raises(FileError, match=why):
        find_target("sparse-cpu").load(changed(file, tmp_path / "bad.onnx", change))


@pytest.mark.fault
def test_wrong_inputs_are_named(file: Path) -> None:
    runner = find_target("sparse-cpu").load(file)
    with pytest.raises(TargetError, match="takes the inputs input; given were x"):
        runner({"x": feed()["input"]})
    with pytest.raises(TargetError, match=r"does not run on input \(2, 4, 12, 12\)"):
        runner({"input": np.zeros((2, 4, 12, 12), np.float32)})
    with pytest.raises(TargetError, match="does not run on input"):
        runner({"input": feed()["input"].astype(np.float64)})
    assert np.isfinite(runner(feed())[0]).all()


@pytest.mark.fault
def test_without_compiled_kernels_the_target_says_so_and_others_work(tmp_path: Path) -> None:
    code = (
        "import paretoprune.sparsity.kernels.library as l\nl._file = lambda name: None\n"
        "from paretoprune.pipeline.targets import find_target\nfind_target('onnxruntime')\n"
        "try: find_target('sparse-cpu')\nexcept Exception as e: print(type(e).__name__, e)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith(
        "TargetError the sparse kernels were not compiled when paretoprune was installed; install a C++"
    )


def test_a_layer_of_zeros_alone_gives_its_bias(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Conv2d(3, 2, 3)
            nn.init.zeros_(self.a.weight)
            nn.init.zeros_(self.b.weight)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.a(x), self.b(x), x * 2

    model, x = Two().eval(), torch.randn(3, 3, 5, 6)
    path = everything().export(model, Example.of(x), tmp_path / "zeros.onnx")
    assert len(packed_nodes(path)) == 2
    a, b, _ = find_target("sparse-cpu").load(path)({"input": x.numpy()})
    np.testing.assert_allclose(a, np.broadcast_to(model.a.bias.detach().numpy(), a.shape), rtol=1e-6)
    np.testing.assert_allclose(b, np.broadcast_to(model.b.bias.detach().numpy()[:, None, None], b.shape), rtol=1e-6)
