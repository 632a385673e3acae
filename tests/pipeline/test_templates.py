"""Files that were cut from an earlier one are the files that a full export gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from paretoprune import graph as graphs
from paretoprune.core.graph import Example
from paretoprune.core.plan import Plan
from paretoprune.targets import OnnxRuntime
from paretoprune.targets.template import Templates


class Recurrent(nn.Module):
    """Units of an LSTM and of a GRU: attributes, and slices of their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(6, 32, batch_first=True)
        self.second = nn.GRU(32, 12, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.second(self.first(x)[0])[0].mean(1))
        return result


class Attention(nn.Module):
    """Fused projections that are chunked and reshaped by numbers in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 24)
        self.norm = nn.LayerNorm(24)
        self.qkv = nn.Linear(24, 72)
        self.out = nn.Linear(24, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x)
        q, k, v = (part.view(-1, 9, 4, 6).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 9, 24)
        result: Tensor = self.head((x + self.out(mixed))[:, 0])
        return result


class Grouped(nn.Module):
    """Groups, a group norm, a depthwise convolution, padding, a split, and batch norms of equal, untrained values."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.b = nn.Conv2d(16, 32, 1, groups=4)
        self.b1, self.b2 = nn.BatchNorm2d(32), nn.BatchNorm2d(32)
        self.c = nn.Conv2d(32, 8, 1)
        self.head = nn.Linear(24 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm(self.a(x)))
        z = self.c(self.b2(F.relu(self.b1(self.b(self.deep(y))))))
        left, right = torch.cat([y, F.pad(z, (0, 0, 0, 0, 0, 0))], 1).split([12, 12], 1)
        result: Tensor = self.head(torch.cat([left, right], 1).flatten(1))
        return result


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "recurrent": (Recurrent, torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))),
    "attention": (Attention, torch.arange(18).view(2, 9)),
    "grouped": (Grouped, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))),
}


def cuts(name: str, count: int) -> tuple[nn.Module, Example, Iterator[nn.Module]]:
    """(the original as a graph, one sample, networks of random widths)."""
    build, inputs = NETWORKS[name]
    torch.manual_seed(0)
    traced = graphs.trace(build().eval(), inputs)
    axes, rng = [a for a in traced.axes if a.prunable], np.random.default_rng(0)

    def random() -> nn.Module:
        kept = {a.id: rng.choice(a.size, int(rng.integers(1, a.size + 1)), replace=False) for a in axes}
        return graphs.cut(traced, Plan({name: tuple(sorted(k.tolist())) for name, k in kept.items()})).program.module

    return traced.program.module, Example.of(inputs[:1]), (random() for _ in range(count))


def meaning(path: Path) -> list[Any]:
    """The operators in their order with what they read, whatever it is called."""
    graph = onnx.load(str(path)).graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    names: dict[str, Any] = {v.name: v.name for v in graph.input}
    found = []
    for i, node in enumerate(graph.node):
        read = [(stored[n].shape, stored[n].tobytes()) if n in stored else names.get(n) for n in node.input]
        found.append((node.op_type, read, [a.SerializeToString() for a in node.attribute]))
        names |= {output: (i, j) for j, output in enumerate(node.output)}
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_files_that_were_cut_are_those_of_a_full_export(name: str, tmp_path: Path) -> None:
    original, one, networks = cuts(name, 7)
    target, templates = OnnxRuntime(), Templates()
    cutting = target.cutting(templates)
    cutting.export(original, one, tmp_path / "original.onnx")
    how = []
    for network in networks:
        cutting.export(network, one, tmp_path / "cut.onnx")
        how.append(templates.why)
        if not templates.why:
            target.export(network, one, tmp_path / "full.onnx")
            assert meaning(tmp_path / "cut.onnx") == meaning(tmp_path / "full.onnx")
    assert how.count("") >= 3, how


@pytest.mark.fault
def test_38_a_file_that_was_cut_wrongly_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size one too large: the file does not run or differs, and a full export takes its place."""
    original, one, networks = cuts("grouped", 3)
    target, templates = OnnxRuntime(), Templates()
    cutting = target.cutting(templates)
    for network in (original, next(networks)):
        cutting.export(network, one, tmp_path / "first.onnx")
    from paretoprune.targets import template

    real = template._value
    monkeypatch.setattr(template, "_value", lambda *given: real(*given) + (real(*given) > 3))
    network = next(networks)
    cutting.export(network, one, tmp_path / "cut.onnx")
    assert "the file that was cut is wrong" in templates.why
    target.export(network, one, tmp_path / "full.onnx")
    assert meaning(tmp_path / "cut.onnx") == meaning(tmp_path / "full.onnx")


@pytest.mark.fault
def test_38_wrong_weights_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, one, networks = cuts("grouped", 2)
    templates = Templates()
    cutting = OnnxRuntime().cutting(templates)
    for network in (original, next(networks)):
        cutting.export(network, one, tmp_path / "first.onnx")
    from paretoprune.targets import template

    real = template._tensors

    def doubled(module: nn.Module) -> dict[str, Tensor]:
        return {name: 2 * t if t.is_floating_point() else t for name, t in real(module).items()}

    monkeypatch.setattr(template, "_tensors", doubled)
    cutting.export(next(networks), one, tmp_path / "cut.onnx")
    assert "differs from the network" in templates.why


def test_what_is_no_captured_graph_is_exported_in_full(tmp_path: Path) -> None:
    templates = Templates()
    cutting = OnnxRuntime().cutting(templates)
    for _ in range(2):
        cutting.export(nn.Linear(4, 3).eval(), Example.of(torch.randn(1, 4)), tmp_path / "file.onnx")
        assert templates.why == "not a captured graph"


def test_a_target_without_templates_exports_as_before(tmp_path: Path) -> None:
    templates = Templates()
    target = OnnxRuntime()
    target.cutting(templates)
    original, one, _ = cuts("recurrent", 0)
    target.export(original, one, tmp_path / "file.onnx")
    assert not templates._known
