"""The rewritten graph as a module: modes, copies, files, export, and what recovery reads from it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import paretoprune as pp
from paretoprune import graph as graphs
from paretoprune.core.errors import FileError
from paretoprune.core.graph import Example
from paretoprune.core.plan import Plan

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ROW = torch.randn(2, 6, generator=torch.Generator().manual_seed(2))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(8, 6, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(6 * 16, 4),
    )


def pruned() -> tuple[Any, graphs.Cut]:
    graph = graphs.trace(network(), IMAGE)
    return graph, graphs.cut(graph, Plan({"0": (0, 2, 5), "4": (1, 3)}))


def test_names_and_shapes() -> None:
    _, cut = pruned()
    original = network()
    assert list(cut.program.module.state_dict()) == list(original.state_dict())
    assert {n: tuple(p.shape) for n, p in cut.program.module.named_parameters()} == {
        "0.weight": (3, 3, 3, 3),
        "1.weight": (3,),
        "1.bias": (3,),
        "4.weight": (2, 3, 3, 3),
        "4.bias": (2,),
        "7.weight": (4, 2 * 16),
        "7.bias": (4,),
    }


def test_train_and_eval_switch_dropout_and_batch_norm() -> None:
    _, cut = pruned()
    module = copy.deepcopy(cut.program.module)
    for one in (module, copy.deepcopy(module)):
        one.eval()
        assert torch.equal(one(IMAGE), one(IMAGE))
        before = one.get_buffer("1.running_mean").clone()
        one(IMAGE)
        assert torch.equal(before, one.get_buffer("1.running_mean"))
        one.train()
        assert not torch.equal(one(IMAGE), one(IMAGE))
        assert not torch.equal(before, one.get_buffer("1.running_mean"))
        one.eval()
    assert not cut.program.module.training


def test_training_moves_the_copy_and_not_the_original() -> None:
    graph, cut = pruned()
    module = copy.deepcopy(cut.program.module).train()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    module(IMAGE).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    optimiser.step()
    assert not torch.equal(module.get_parameter("0.weight"), cut.program.module.get_parameter("0.weight"))
    assert torch.equal(
        cut.program.module.get_parameter("0.weight"), graph.captured.get_parameter("0.weight")[[0, 2, 5]]
    )


def test_the_rewritten_network_equals_the_rebuilt_one_in_training() -> None:
    graph, cut = pruned()
    rebuilt, reason = graphs.rebuild(network().train(), graph, cut)
    assert rebuilt is not None, reason
    ours, theirs = copy.deepcopy(cut.program.module).train(), rebuilt.train()
    torch.manual_seed(3)
    a = ours(IMAGE)
    torch.manual_seed(3)
    torch.testing.assert_close(a, theirs(IMAGE))
    for module in (rebuilt[0], rebuilt[1], rebuilt[4], rebuilt[7]):
        assert "8" not in repr(module)
    assert rebuilt[0].out_channels == rebuilt[1].num_features == rebuilt[4].in_channels == 3
    assert rebuilt[7].in_features == 32


def test_moves_to_another_device() -> None:
    _, cut = pruned()
    module = copy.deepcopy(cut.program.module).to("meta")
    assert module(IMAGE.to("meta")).shape == (2, 4)
    assert module.double()(IMAGE.to("meta").double()).dtype == torch.float64


def test_tracing_again_finds_the_smaller_axes() -> None:
    _, cut = pruned()
    again = graphs.trace(cut.program.module, IMAGE)
    assert {a.id: a.size for a in again.axes if a.prunable} == {"0": 3, "4": 2}
    graphs.check(again, Plan({"0": (0, 2)}))


# -- export ----------------------------------------------------------------------------------------------------------


def _products(m: Any, x: torch.Tensor) -> torch.Tensor:
    b = x.size(0)
    y = m.a(x).view(b * 3, 4)
    y = m.b(y).reshape(b, 3 * 5) + m.e.expand(b, 15)
    return m.c(torch.cat([y, x.new_zeros(b, 2), torch.zeros(b, 1)], 1))


EXPORTS: dict[str, tuple[dict[str, Any], Any, torch.Tensor, str]] = {
    "view of the batch": (
        {"a": nn.Conv2d(3, 8, 3), "b": nn.Linear(8 * 36, 4)},
        lambda m, x: m.b(F.relu(m.a(x)).view(x.size(0), -1)),
        IMAGE,
        "a",
    ),
    "products of the batch": (
        {"a": nn.Linear(6, 12), "b": nn.Linear(4, 5), "c": nn.Linear(18, 2), "e": nn.Parameter(torch.randn(1, 15))},
        _products,
        ROW,
        "b",
    ),
    "shuffle": (
        {"a": nn.Conv2d(3, 12, 1), "b": nn.Conv2d(12, 4, 1)},
        lambda m, x: m.b(
            m.a(x).view(x.shape[0], 3, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
        ),
        IMAGE,
        "a",
    ),
    "split and mean": (
        {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(4, 4, 1), "c": nn.Linear(8, 2)},
        lambda m, x: (lambda p, q: m.c(torch.cat([m.b(p), q], 1).mean((2, 3))))(*m.a(x).chunk(2, 1)),
        IMAGE,
        "a",
    ),
}


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.filterwarnings("ignore")
def test_export_keeps_the_batch_dynamic(name: str, tools: Any, tmp_path: Path) -> None:
    parts, forward, example, axis = EXPORTS[name]
    model = tools.randomise(tools.Net(forward, **parts))
    graph = graphs.trace(model, example)
    size = tools.prunable(graph)[axis]
    module = graphs.cut(graph, Plan({axis: tuple(range(1, size))})).program.module
    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    path = str(tmp_path / "m.onnx")
    torch.onnx.export(module, (example,), path, dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes=axes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = torch.randn(batch, *example.shape[1:])
        (got,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(got, module(x).detach().numpy(), rtol=1e-4, atol=1e-5)


# -- what recovery reads ---------------------------------------------------------------------------------------------


def test_rows_times_the_matrix_is_the_layer() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=2, dilation=2, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 6, (3, 1), stride=2),
        nn.Conv2d(6, 6, 3, padding="same"),
        nn.Conv2d(6, 6, 1, stride=2),
        nn.Conv2d(6, 6, 3, padding=1, groups=2),
        nn.Flatten(2),
        nn.Linear(6, 3),
    ).eval()
    graph = graphs.trace(model, torch.randn(2, 3, 9, 9))
    weights = [c.weight for c in graph.program.contractions]
    assert weights == ["0.weight", "2.weight", "3.weight", "4.weight", "7.weight"]  # not the grouped one
    seen: dict[str, torch.Tensor] = {}
    watch = {c.node: lambda x, n=c.node: seen.__setitem__(n, x) for c in graph.program.contractions}
    graph.program.observe(Example((torch.randn(2, 3, 9, 9),)), watch)
    for c in graph.program.contractions:
        layer, x = model.get_submodule(c.weight.rpartition(".")[0]), seen[c.node]
        flat = c.rows(x) @ c.matrix(layer.weight).T + (0 if c.bias is None else layer.bias)
        out = layer(x) if isinstance(layer, nn.Linear) else layer(x).movedim(1, -1)
        torch.testing.assert_close(flat, out.reshape(-1, out.shape[-1]), rtol=1e-4, atol=1e-5)
        assert torch.equal(c.unmatrix(c.matrix(layer.weight), layer.weight.shape), layer.weight)
    norms = graph.program.batch_norms
    assert [(b.mean, b.var) for b in norms] == [("1.running_mean", "1.running_var")]
    assert [c.batch_norm for c in graph.program.contractions] == [norms[0].node, None, None, None, None]


def test_batch_statistics_do_not_touch_the_running_ones() -> None:
    graph = graphs.trace(network(), IMAGE)
    before = graph.program.module.get_buffer("1.running_mean").clone()
    (norm,) = graph.program.batch_norms
    with torch.no_grad():
        graph.program.module.get_parameter("1.bias").fill_(3.0)
        graph.program.module.get_parameter("1.weight").fill_(0.1)
    outs: list[torch.Tensor] = []
    node = next(n for n in graph.program.module.graph.nodes if n.name == norm.node)
    (reader,) = node.users
    graph.program.observe(Example((IMAGE,)), {reader.name: outs.append}, batch_statistics=True)
    torch.testing.assert_close(outs[0].mean((0, 2, 3)), torch.full((8,), 3.0))
    assert torch.equal(before, graph.program.module.get_buffer("1.running_mean"))


# -- files -----------------------------------------------------------------------------------------------------------


def saved(module: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, bool]]:
    trainable = {n: p.requires_grad for n, p in module.named_parameters(remove_duplicate=False)}
    return json.loads(json.dumps(graphs.dump(module))), graphs.tensors_of(module), trainable


def test_a_saved_graph_trains_and_evaluates() -> None:
    _, cut = pruned()
    loaded = graphs.load(*saved(cut.program.module))
    assert torch.equal(loaded(IMAGE), cut.program.module(IMAGE))
    assert not torch.equal(loaded.train()(IMAGE), loaded(IMAGE))
    assert torch.equal(loaded.eval()(IMAGE), loaded(IMAGE))


def test_structured_inputs_and_outputs_survive_a_file(tools: Any) -> None:
    def forward(m: Any, pair: Any, scale: Any) -> Any:
        return {"y": (m.a(pair[0]), [scale * 2, None])}

    model = tools.Net(forward, a=nn.Linear(6, 4))
    graph = graphs.trace(model, ((ROW, ROW), torch.randn(2, 1)))
    loaded = graphs.load(*saved(graph.program.module))
    output = loaded((ROW, ROW), torch.ones(2, 1))
    torch.testing.assert_close(output["y"][0], model.a(ROW))
    assert isinstance(output["y"], tuple)
    assert output["y"][1][1] is None


def _placeholder(d: dict[str, Any]) -> dict[str, Any]:
    return next(n for n in d["nodes"] if n["op"] == "placeholder")


def _call(d: dict[str, Any]) -> dict[str, Any]:
    return next(n for n in d["nodes"] if n["op"] == "call_function")


EVIL = "x):\n    __import__('os').system('touch /tmp/evil')\n    return ("
TAMPERED: dict[str, Any] = {
    "placeholder": lambda d: _placeholder(d).update(target=EVIL),
    "placeholder default": lambda d: _placeholder(d).update(target="x=__import__('os')"),
    "node name": lambda d: _placeholder(d).update(name="a b"),
    "attribute": lambda d: next(n for n in d["nodes"] if n["op"] == "get_attr").update(target="__class__"),
    "function": lambda d: _call(d).update(target="os.system"),
    "dunder operator": lambda d: _call(d).update(target="aten.__class__.mro"),
    "file operator": lambda d: _call(d).update(target="aten.from_file.default"),
    "keyword": lambda d: _call(d).update(kwargs={"dict": [["x=1); print(", 1]]}),
    "method": lambda d: _call(d).update(op="call_method", target="__reduce__"),
    "module": lambda d: _call(d).update(op="call_module", target="0"),
    "unknown node": lambda d: _call(d).update(args=[{"node": "nowhere"}]),
    "value": lambda d: _call(d).update(args=[{"dtype": "hub"}]),
    "signature names": lambda d: d.update(signature={"args": [EVIL], "in": None, "out": None}),
    "signature kind": lambda d: d.update(
        signature={"args": ["x"], "in": {"kind": "collections.defaultdict", "keys": [], "children": []}, "out": None}
    ),
    "no nodes": lambda d: d.pop("nodes"),
}


@pytest.mark.fault
@pytest.mark.parametrize("name", TAMPERED)
def test_55_a_tampered_graph_runs_nothing(name: str) -> None:
    _, cut = pruned()
    data, tensors, trainable = saved(cut.program.module)
    TAMPERED[name](data)
    with pytest.raises(FileError):
        graphs.load(data, tensors, trainable)


def test_a_tensor_name_that_is_no_name_is_refused() -> None:
    _, cut = pruned()
    data, tensors, trainable = saved(cut.program.module)
    with pytest.raises(FileError, match="where the name of a tensor is expected"):
        graphs.load(data, {**tensors, "a.__class__": torch.ones(1)}, trainable)


class Positions(nn.Module):
    """Constants that are made on a device in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        fill = torch.zeros(x.shape[0], 3, device=x.device) + torch.full((3,), 2.0, device=x.device)
        y = self.down(torch.relu(self.up(x + steps))) + fill + self.shift
        return y * torch.eye(3, device=x.device)[0] + torch.tensor([1.0, 2.0, 3.0], device=x.device).to(x.device)


def test_a_graph_that_was_moved_makes_its_constants_there() -> None:
    """The meta device stands for another one: an operator refuses operands of both."""
    model, x = Positions().eval(), torch.randn(2, 6)
    module = pp.prune(model, x, ratio=0.5).program.module
    torch.testing.assert_close(copy.deepcopy(module)(x), module(x))
    tensors = graphs.tensors_of(module)
    for made in (copy.deepcopy(module), graphs.load(json.loads(json.dumps(graphs.dump(module))), tensors, {})):
        moved = made.to("meta")
        assert moved(x.to("meta")).device.type == "meta"
        assert moved(x.to("meta")).shape == (2, 3)
    assert module(x).device.type == "cpu"
