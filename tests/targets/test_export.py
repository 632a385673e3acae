from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from paretoprune.core.errors import DataError, ExportMismatchError, TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.targets import OnnxRuntime


def captured(module: nn.Module, example: torch.Tensor, *, frozen_batch: bool) -> torch.fx.GraphModule:
    """An ATen graph; with `frozen_batch` as torch.export leaves it, else with sizes asked of tensors by method."""
    dynamic = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(module.eval(), (example,), dynamic_shapes=dynamic, strict=False)
    graph_module = program.module()
    for node in list(graph_module.graph.nodes):
        if node.op == "call_module" and "guard" in str(node.target):
            graph_module.graph.erase_node(node)
        elif not frozen_batch and node.target is torch.ops.aten.sym_size.int:
            node.op, node.target = "call_method", "size"
        elif not frozen_batch and node.target is torch.ops.aten.view.default:
            node.op, node.target = "call_method", "view"
    graph_module.recompile()
    return graph_module


def outputs_agree(target: OnnxRuntime, path: Path, module: nn.Module, batch: int) -> bool:
    x = torch.randn(batch, 3, 16, 16)
    with torch.no_grad():
        expected = module(x).numpy()
    (given,) = target.load(path)({"input": x.numpy()})
    return given.shape == expected.shape and bool(np.allclose(given, expected, atol=1e-4))


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_module_keeps_its_batch_dynamic(target, net, example, tmp_path, batch):
    path = target.export(net.eval(), example, tmp_path / "net.onnx")
    assert outputs_agree(target, path, net, batch)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_captured_graph_keeps_its_batch_dynamic(target, net, example, tmp_path, batch):
    graph_module = captured(net, example.args[0], frozen_batch=False)
    path = target.export(graph_module, example, tmp_path / "net.onnx")
    assert outputs_agree(target, path, net, batch)


def test_a_frozen_batch_is_an_error_that_says_so(target, net, example, tmp_path):
    graph_module = captured(net, example.args[0], frozen_batch=True)
    with pytest.raises(ExportMismatchError, match="batch size became a constant"):
        target.export(graph_module, example, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


class Truncated(nn.Module):
    """Always gives two rows: it runs at every batch size, with the wrong shape at some."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[: int(x.shape[0])] * 2


def test_a_frozen_slice_is_found_by_its_shape(target, tmp_path):
    with pytest.raises(ExportMismatchError, match=r"shape \(2, 5\).*\(3, 5\).*constant"):
        target.export(Truncated(), Example.of(torch.randn(4, 5)), tmp_path / "f.onnx")


def test_modes_random_state_and_gradients_are_left_as_they_were(target, net, example, tmp_path):
    net.train()
    net.block.norm.eval()
    net.head.weight.requires_grad_(False)
    modes = {name: part.training for name, part in net.named_modules()}
    state, weights = torch.random.get_rng_state(), {k: v.clone() for k, v in net.state_dict().items()}
    path = target.export(net, example, tmp_path / "net.onnx")
    assert {name: part.training for name, part in net.named_modules()} == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert not net.head.weight.requires_grad
    assert net.stem.weight.requires_grad
    assert outputs_agree(target, path, net.eval(), 2)


class Drawing(nn.Module):
    """Draws a random number even in evaluation mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 0 * torch.rand(1)


def test_a_network_that_draws_leaves_the_random_state(target, tmp_path):
    state = torch.random.get_rng_state()
    target.export(Drawing(), Example.of(torch.ones(4, 3)), tmp_path / "d.onnx")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nothing_is_printed_and_one_file_is_written(target, net, example, tmp_path, capfd):
    target.export(net, example, tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.mix = nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor, *, scale: torch.Tensor, flag: bool = True) -> dict[str, object]:
        rows = self.table(ids).mean(1) * scale
        return {"logits": self.mix(rows), "nothing": None, "rows": [rows, ids + 1]}


def test_keyword_inputs_and_nested_outputs(target, tmp_path):
    module = Keywords()
    example = Example(kwargs={"ids": torch.randint(0, 11, (5, 6)), "scale": torch.rand(5, 1)})
    runner = target.load(target.export(module, example, tmp_path / "k.onnx"))
    feed = {"ids": np.array([[1, 2, 3, 4, 5, 6]]), "scale": np.ones((1, 1), np.float32)}
    logits, _, ids = runner(feed)
    assert set(runner.input_names) == {"ids", "scale"}
    assert logits.shape == (1, 3)
    assert np.array_equal(ids, feed["ids"] + 1)


class Forgetful(nn.Module):
    """Depends on how often it was called: what was traced is not what runs later."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


def test_a_file_that_disagrees_is_rejected_with_the_largest_error(target, tmp_path):
    old = tmp_path / "f.onnx"
    old.write_bytes(b"an earlier file")
    with pytest.raises(ExportMismatchError, match=r"differs from the network by up to \d.*rejected"):
        target.export(Forgetful(), Example.of(torch.randn(4, 3)), old)
    assert old.read_bytes() == b"an earlier file"
    assert list(tmp_path.iterdir()) == [old]


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def test_nan_outputs_are_refused(target, tmp_path):
    with pytest.raises(ExportMismatchError, match="NaN"):
        target.export(Scaled(float("nan")), Example.of(torch.randn(4, 3)), tmp_path / "f.onnx")


def test_a_constant_output_proves_nothing(target, tmp_path):
    with pytest.raises(ExportMismatchError, match="does not vary"):
        target.export(Scaled(0.0), Example.of(torch.randn(4, 3)), tmp_path / "f.onnx")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_refused_not_cast(target, net, tmp_path, dtype):
    with pytest.raises(TargetError, match=r"stem.weight is .*float"):
        target.export(net.to(dtype), Example.of(torch.randn(2, 3, 16, 16, dtype=dtype)), tmp_path / "f.onnx")


class Unsupported(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(x @ x.transpose(1, 2))


def test_what_the_exporter_cannot_do_is_named(target, tmp_path):
    with pytest.raises(TargetError, match="exporter refused"):
        target.export(Unsupported(), Example.of(torch.randn(2, 3, 3)), tmp_path / "f.onnx")


def test_bad_requests(target, net, example, tmp_path):
    with pytest.raises(UsageError, match="'int4' is not offered by onnxruntime; it has fp32, int8"):
        target.export(net, example, tmp_path / "f.onnx", precision="int4")
    with pytest.raises(DataError, match="no tensor"):
        target.export(net, Example.of(3), tmp_path / "f.onnx")
    with pytest.raises(UsageError, match="threads=0"):
        OnnxRuntime(threads=0)


class Classes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * torch.tensor([1.0, 1.0, 100.0])).abs().argmax(1)


def test_integer_outputs_may_be_equal(target, tmp_path):
    path = target.export(Classes(), Example.of(1 + torch.rand(4, 3)), tmp_path / "c.onnx")
    (classes,) = target.load(path)({"input": np.array([[1, 2, 3], [900, 1, 1]], np.float32)})
    assert classes.tolist() == [2, 0]
