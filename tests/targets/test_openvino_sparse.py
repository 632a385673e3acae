"""Sparse layers inside OpenVINO: equal to its dense ones, fused where that is exact, and nothing read out of bounds."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from paretoprune.core.errors import FileError, TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.layers import LayerSpec
from paretoprune.pipeline.targets import Packing, find_target
from paretoprune.sparsity import Packed, pack, pack_int8, pattern_of
from paretoprune.sparsity.kernels import available
from paretoprune.sparsity.openvino_ops import build, choice, choose, replace
from paretoprune.sparsity.openvino_ops.replace import laid_out
from paretoprune.targets.openvino_sparse import OpenVinoSparse
from paretoprune.targets.traits import describe
from sparse_reference import close, sparse_weight

pytestmark = pytest.mark.skipif(not available(), reason="no compiler was there when the package was installed")

ov = pytest.importorskip("openvino", reason="needs the extra openvino: pip install 'paretoprune[openvino]'")
CORE = ov.Core()
EXAMPLE = Example.of(torch.randn(2, 32, 7, 7))
SETTINGS = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
Array = Any


@pytest.fixture(scope="module", autouse=True)
def compiled_once(shared_cache: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARETOPRUNE_CACHE", shared_cache)
        yield


class Net:
    """Nodes one after the other, on an input "x" whose batch is open."""

    def __init__(self, *shape: int | str) -> None:
        self.shape, self.last, self.nodes, self.tensors = ("n", *shape), "x", list[Any](), list[Any]()
        self.packed: dict[str, Packed] = {}

    def then(self, kind: str, *more: str | Array, flip: bool = False, **attributes: Any) -> Net:
        others = [self.held(each) if isinstance(each, np.ndarray) else each for each in more]
        inputs = [*others, self.last] if flip else [self.last, *others]
        self.last = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [self.last], name=f"{kind}{len(self.nodes)}", **attributes))
        return self

    def held(self, value: Array) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, shape: tuple[int, ...], pattern: str = "4x1", turned: bool = False, sparsity: float = 0.6) -> str:
        value = sparse_weight(np.random.default_rng(len(self.tensors)), shape, pattern_of(pattern), sparsity)
        name = self.held(value.T if turned else value)
        self.packed[name] = pack(value, pattern_of(pattern))
        return name

    def gelu(self) -> Net:
        x, (root, one, half) = self.last, np.array([[np.sqrt(2)], [1], [0.5]], np.float32)
        return self.then("Div", root).then("Erf").then("Add", one).then("Mul", x, flip=True).then("Mul", half)

    def model(self) -> Any:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        y = helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "net", [x], [y], self.tensors)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return CORE.read_model(made.SerializeToString())

    def run(self, model: Any, batch: int, threads: int = 1) -> Array:
        sizes = [batch, *(size if isinstance(size, int) else 9 for size in self.shape[1:])]
        x = np.random.default_rng(batch).standard_normal(sizes).astype(np.float32)
        return CORE.compile_model(model, "CPU", {**SETTINGS, "INFERENCE_NUM_THREADS": threads})(x)[0]


def bias(outputs: int) -> Array:
    return np.random.default_rng(7).standard_normal(outputs).astype(np.float32)


def agree(net: Net, layers: Sequence[int], threads: int = 1) -> Any:
    """`layers`: of how many nodes each of our operators took the place."""
    model = net.model()
    made = replace(model, net.packed, threads)
    assert sorted(map(len, made.layers.values())) == sorted(layers), made
    assert [o.any_name for o in made.model.outputs] == [o.any_name for o in model.outputs]
    for batch in (1, 5):
        close(net.run(made.model, batch, threads), net.run(model, batch))
    return made


@pytest.mark.parametrize("pattern", ["unstructured", "4x1", "16x1", "2x3"])
@pytest.mark.parametrize("shape", [(24, 6, 1, 1), (17, 5, 3, 3)])
def test_images(shape: tuple[int, ...], pattern: str) -> None:
    window = {"kernel_shape": shape[2:], "strides": [2, 1], "pads": [shape[2] // 2, 0, 1, 1]}
    net = Net(shape[1], 9, 11)
    net.then("Conv", net.weight(shape, pattern), bias(shape[0]), **window).then("Relu")
    agree(net, [3])


def test_images_of_any_size() -> None:
    net = Net(4, "high", "wide")
    agree(net.then("Conv", net.weight((8, 4, 3, 3)), pads=[1, 1, 1, 1]).then("Relu"), [2])


@pytest.mark.parametrize("rows", [(), (7,), (2, 13)])
@pytest.mark.parametrize("turned", [False, True])
def test_rows(rows: tuple[int, ...], turned: bool) -> None:
    net = Net(*rows, 20)
    if turned:
        net.then("MatMul", net.weight((24, 20), turned=True)).then("Add", bias(24), flip=True)
    else:
        net.then("MatMul", net.weight((24, 20), turned=True)).then("Relu")
    agree(net, [2])


def test_gemm_with_a_scale() -> None:
    net = Net(20)
    agree(net.then("Gemm", net.weight((24, 20)), bias(24), transB=1).then("Relu"), [4])
    net = Net(20)
    agree(net.then("Gemm", net.weight((24, 20)), bias(24), transB=1, alpha=0.5), [1])


def test_a_residual_block_becomes_two_operators_on_several_threads() -> None:
    agree(block(), [3, 4], threads=2)


def test_a_feed_forward_block_becomes_two_operators() -> None:
    net = Net(7, 16)
    net.then("MatMul", net.weight((32, 16), turned=True)).then("Add", bias(32)).gelu()
    net.then("MatMul", net.weight((16, 32), turned=True)).then("Add", bias(16)).then("Add", "x", flip=True)
    agree(net, [7, 3])


def test_what_others_read_too_or_has_another_size_is_not_fused() -> None:
    net = Net(16, 9, 9)
    net.then("Conv", net.weight((16, 16, 1, 1)), bias(16))
    before = net.last
    net.then("Relu").then("Add", before)
    agree(net, [2])
    net = Net(16, 1, 1)
    agree(net.then("Conv", net.weight((16, 16, 1, 1)), pads=[0, 0, 2, 2]).then("Add", "x"), [1])
    net = Net(9, 16)
    net.then("MatMul", net.weight((8, 16), turned=True)).then("Add", np.ones((9, 8), np.float32)).then("LeakyRelu")
    agree(net, [1])


def test_what_the_kernels_lack_stays_dense_and_says_why() -> None:
    net = Net(8, 9, 9)
    net.then("Conv", net.weight((8, 8, 3, 3)), dilations=[2, 2])
    (why,) = agree(net, []).left.values()
    assert "dilations" in why
    net = Net(9, 8)
    net.then("Conv", net.weight((8, 9, 1)))
    assert "Convolution with a weight of shape (8, 9, 1)" in str(agree(net, []).left)
    net = Net(8, 8)
    net.then("MatMul", net.weight((8, 8)), flip=True)
    assert "as its weight" in str(agree(net, []).left)


def block(sparsity: float = 0.6) -> Net:
    net = Net(16, 9, 9)
    net.then("Conv", net.weight((16, 16, 3, 3), sparsity=sparsity), bias(16), pads=[1, 1, 1, 1]).then("Relu")
    return net.then("Conv", net.weight((16, 16, 1, 1), sparsity=sparsity), bias(16)).then("Add", "x").then("Relu")


def test_the_fastest_network_is_chosen() -> None:
    net = block()
    model, feed = net.model(), {"x": np.ones((2, 16, 9, 9), np.float32)}
    made = choose(model, net.packed, feed, rounds=3)
    assert {"dense", "all"} <= made.networks.keys()
    assert len(made.layers) == 2
    assert len(made.weights) == len(made.best.layers)
    assert all(min(times) > 0 for times in made.layers.values())
    close(net.run(made.best.model, 3), net.run(model, 3))


def test_a_layer_that_loses_stays_dense_if_the_whole_network_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    net = block()
    model, feed, (first, second) = net.model(), {"x": np.ones((2, 16, 9, 9), np.float32)}, net.packed
    (one,), (two,) = (replace(model, {name: net.packed[name]}).layers for name in (first, second))
    monkeypatch.setattr(choice, "_layer_times", lambda *_: {one: (1.0, 1.4), two: (1.0, 0.5)})
    for fastest, weights in (("margin 1", (second,)), ("all", (first, second)), ("dense", ())):
        times = dict.fromkeys(("dense", "all", "margin 1"), 1.0) | {fastest: 0.5}
        monkeypatch.setattr(choice, "_network_times", lambda models, *_, t=times: {n: t[n] for n in models})
        assert choose(model, net.packed, feed).weights == weights


def test_weights_of_another_network_are_refused() -> None:
    net = Net(16)
    net.then("MatMul", net.weight((8, 16), turned=True))
    model, (name,) = net.model(), net.packed
    other = sparse_weight(np.random.default_rng(9), (8, 16), pattern_of("4x1"), 0.5)
    for given, words in (
        ({"nothing": net.packed[name]}, "no weight 'nothing'"),
        ({name: pack(other, pattern_of("4x1"))}, "not what is packed"),
        ({name: pack_int8(other, pattern_of("16x4"))}, "not what is packed"),
    ):
        with pytest.raises(UsageError, match=words):
            replace(model, given)
    with pytest.raises(UsageError, match="threads=0"):
        replace(model, net.packed, threads=0)


def operator(change: Any = None, **attributes: int) -> Any:
    """A sparse linear layer of 16 inputs and 8 outputs, made by hand; `change` alters its constant."""
    path, name = build.ready()
    weight = pack(sparse_weight(np.random.default_rng(3), (8, 16), pattern_of("4x1"), 0.5), pattern_of("4x1"))
    blob, about = laid_out(weight, None, name)
    if change is not None:
        blob = change(blob.copy())
    factory = ov.utils.node_factory.NodeFactory()
    factory.add_extension(str(path))
    x = ov.opset13.parameter([-1, 16], np.float32, "x")
    about |= {"activation": 0, "set": build.SETS.index(name), "threads": 1, **attributes}
    return ov.Model([factory.create("SparseLinear", [x, ov.op.Constant(blob)], about)], [x], "one")


def _set(at: int, value: int) -> Any:
    def change(blob: Array) -> Array:
        blob[at] = value
        return blob

    return change


@pytest.mark.fault
@pytest.mark.parametrize(
    ("change", "attributes", "words"),
    [
        (lambda blob: blob[:-64], {}, "truncated"),
        (lambda blob: np.append(blob, blob), {}, "truncated"),
        (_set(-64, 16), {}, "outside"),  # the first index: inputs are 0 to 15
        (_set(3, 255), {}, "outside"),  # a negative start
        (_set(4, 255), {}, "outside"),  # more columns than there are
        (None, {"columns": 1 << 40}, "impossible size"),
        (None, {"outputs": -8}, "impossible size"),
        (None, {"parts": 0}, "impossible size"),
        (None, {"inputs": 8}, "outside"),
        (None, {"activation": 3}, "activation"),
        (None, {"threads": 0}, "threads"),
        (None, {"set": 9}, "no sparse kernels"),
        (None, {"biased": 1}, "truncated"),
    ],
)
def test_damaged_weights_are_refused_and_never_read_out_of_bounds(change: Any, attributes: Any, words: str) -> None:
    operator()
    with pytest.raises(RuntimeError, match=words):
        operator(change, **attributes)


@pytest.mark.fault
def test_a_saved_network_is_checked_again_when_it_is_read(tmp_path: Path) -> None:
    model = operator()
    ov.save_model(model, tmp_path / "net.xml", compress_to_fp16=False)
    core = ov.Core()
    core.add_extension(str(build.ready()[0]))
    x = np.ones((2, 16), np.float32)
    read = core.read_model(tmp_path / "net.xml")
    np.testing.assert_array_equal(core.compile_model(read, "CPU")(x)[0], core.compile_model(model, "CPU")(x)[0])
    data = bytearray((tmp_path / "net.bin").read_bytes())
    (tmp_path / "net.bin").write_bytes(data[:-64] + b"\xff" * 64)
    with pytest.raises(RuntimeError, match="outside"):
        core.compile_model(core.read_model(tmp_path / "net.xml"), "CPU")


@pytest.mark.fault
def test_inputs_of_another_size_are_refused_at_run_time() -> None:
    with pytest.raises(RuntimeError):
        CORE.compile_model(operator(), "CPU")(np.ones((2, 15), np.float32))
    net = Net(4, "high", "wide")
    net.then("Conv", net.weight((8, 4, 3, 3)))
    run = CORE.compile_model(replace(net.model(), net.packed).model, "CPU")
    with pytest.raises(RuntimeError, match="smaller than the kernel"):
        run(np.ones((1, 4, 2, 9), np.float32))
    assert run(np.ones((0, 4, 9, 9), np.float32))[0].shape == (0, 8, 7, 7)


def test_several_requests_at_once() -> None:
    net = Net(16, 9, 9)
    net.then("Conv", net.weight((16, 16, 3, 3)), bias(16), pads=[1, 1, 1, 1]).then("Add", "x").then("Relu")
    model = replace(net.model(), net.packed, threads=2).model
    alone, made = (CORE.compile_model(model, "CPU", {**SETTINGS, "NUM_STREAMS": 2}) for _ in range(2))
    xs = [np.random.default_rng(i).standard_normal((i + 1, 16, 9, 9)).astype(np.float32) for i in range(4)]
    wanted, wrong = [alone(x)[0] for x in xs], []

    def work(i: int) -> None:
        request = made.create_infer_request()
        wrong.extend(1 for _ in range(20) if not np.array_equal(request.infer({0: xs[i]})[0], wanted[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_it_is_compiled_once(shared_cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shared_cache)
    path = build.extension(folder)
    monkeypatch.setattr(build, "_compile", lambda command: pytest.fail("compiled again"))
    assert build.extension(folder) == path


@pytest.mark.fault
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"CXX": "nothing-like-a-compiler"}, "CXX names nothing-like-a-compiler, which is not there"),
        ({"CXX": "", "PATH": "/nowhere"}, r"no C\+\+ compiler: install a C\+\+17 compiler"),
        ({"CXX": "false"}, "cannot be compiled with .*false"),
        ({"CXX": "c++ -include nothing.hpp"}, "error: .*; install"),
    ],
)
def test_without_a_working_compiler_it_says_what_to_do(
    variables: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TargetError, match=words):
        build.extension(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.fault
def test_a_package_without_headers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        __file__ = str(tmp_path / "openvino" / "__init__.py")

    monkeypatch.setattr(build, "openvino", Elsewhere)
    with pytest.raises(TargetError, match="no library to compile against"):
        build.extension(tmp_path)


class Residual(nn.Module):
    """Two convolutions with a residual, two linear layers with GELU; a tenth of the blocks stays."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        for layer in (self.one, self.two, self.up, self.down):
            zeros = np.random.default_rng(0)
            value = sparse_weight(zeros, tuple(layer.weight.shape), pattern_of("16x1"), 0.9)
            layer.weight.data = torch.from_numpy(value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.two(torch.relu(self.one(x))) + x)
        rows = x.flatten(2).transpose(1, 2)
        return self.down(nn.functional.gelu(self.up(rows))) + rows


@pytest.fixture(scope="module")
def packed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = OpenVinoSparse(1, Packing(), keep="all")
    return target.export(Residual().eval(), EXAMPLE, tmp_path_factory.mktemp("packed") / "net.onnx")


def test_a_file_of_packed_layers_answers_like_the_module(packed_file: Path) -> None:
    target, net = find_target("openvino-sparse"), Residual().eval()
    runner = target.load(packed_file)
    for batch in (1, 3):
        x = torch.randn(batch, 32, 7, 7)
        close(runner({"input": x.numpy()})[0], net(x).detach().numpy())
    assert find_target("sparse-cpu").load(packed_file)({"input": x.numpy()})[0].shape == (3, 49, 32)
    kinds = [node.op_type for node in onnx.load(str(packed_file)).graph.node if node.domain == "paretoprune"]
    assert kinds == ["SparseConv", "SparseConv", "SparseLinear", "SparseLinear"]
    facts = target.fingerprint()
    assert {"openvino", "kernels"} <= facts.keys()
    assert describe(target)["dense layers"] == "OpenVINO"


def test_which_layers_are_packed_is_measured_and_the_file_runs_either_way(tmp_path: Path) -> None:
    target = find_target("openvino-sparse")
    path = target.export(Residual().eval(), EXAMPLE, tmp_path / "net.onnx")
    assert target.load(path)({"input": np.ones((2, 32, 7, 7), np.float32)})[0].shape == (2, 49, 32)
    for zeros in ("", "16x1@0.9"):
        target.layer(LayerSpec("linear", 64, 64, rows=16, zeros=zeros), 2, "fp32")()


def _altered(file: Path, change: Any) -> Path:
    model = onnx.load(str(file))
    change(model.graph, {tensor.name: tensor for tensor in model.graph.initializer})
    onnx.save(model, str(file.with_name("altered.onnx")))
    return file.with_name("altered.onnx")


def _shorter(name: str) -> Any:
    def change(graph: Any, tensors: Any) -> None:
        value = numpy_helper.to_array(tensors[name])
        tensors[name].CopyFrom(numpy_helper.from_array(value[:-1].copy(), name))

    return change


def _word(name: str, value: Any) -> Any:
    def change(graph: Any, tensors: Any) -> None:
        node = next(each for each in graph.node if each.op_type == "SparseConv")
        kept = [each for each in node.attribute if each.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


@pytest.mark.fault
@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (_shorter("one.weight_at"), FileError, "altered.onnx"),
        (_shorter("one.weight_value"), FileError, "values of shape"),
        (_shorter("one.bias"), FileError, "a bias of"),
        (_word("shape", [32, 32]), FileError, "altered.onnx"),
        (_word("activation", "tanh"), FileError, "damaged"),
        (_word("coding", "words"), FileError, "coded as 'words'"),
        (_word("stride", [0, 1]), FileError, "impossible window"),
        (_word("grid", [0.5, 3.0]), TargetError, "no operator of ours for layers in 8 bits"),
    ],
)
def test_damaged_files_are_refused(packed_file: Path, change: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        find_target("openvino-sparse").load(_altered(packed_file, change))
