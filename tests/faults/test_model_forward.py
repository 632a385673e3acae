"""Faults of what a network does: FAULTS 18, 22, 24, 25, 31 and 32."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import paretoprune as pp
from paretoprune.core.errors import CaptureError, ModelError, PlanError, TargetError

pytestmark = pytest.mark.fault
X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """`forward` is a function of the module and its input; "a" has 8 units."""

    def __init__(self, forward: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.function = forward

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args) if self.function is not None else self.b(F.relu(self.a(*args)))


def plain(m: Any, x: torch.Tensor) -> Any:
    return m.b(F.relu(m.a(x)))


def branching(m: Any, x: torch.Tensor) -> Any:
    if x.sum() > 0:  # the line that must be named
        return m.b(m.a(x))
    return m.b(m.a(-x))


def run(file: Any, x: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(np.asarray(y)) for y in session.run(None, {session.get_inputs()[0].name: x.numpy()})]


@pytest.mark.parametrize("way", ["trace", "prune"])
def test_18_a_branch_on_the_data_names_the_line(kept: Any, way: str) -> None:
    words = ("a branch depends on the data", f"{__file__}:", "if x.sum() > 0:  # the line that must be named")
    text = kept.refused(way, Small(branching), X, CaptureError, *words, "torch.where")
    assert "'a' on (2, 6), 'b' on (2, 8)" in text


def test_18_a_branch_on_the_data_is_not_exported_as_one_way(kept: Any) -> None:
    words = ("makes a Python value of its data", f"{__file__}:", "if x.sum() > 0:", "torch.where")
    kept.refused("export", Small(branching), X, TargetError, *words)


def test_18_what_can_be_captured_around_a_branch_is_pruned(kept: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6), Small(branching)).eval()
    with kept.unchanged(model):
        pruned = kept.prune(model, X)
    assert pruned.model[0].weight.shape == (5, 6)
    (note,) = (n for n in pruned.notes if "cannot be captured" in n)
    assert "if x.sum() > 0:" in note
    for inputs in (X, -X):
        torch.testing.assert_close(pruned.model(inputs), pruned.program.module(inputs))


def without_rule(m: Any, x: torch.Tensor) -> Any:
    return m.b(torch.linalg.qr(m.a(x).unsqueeze(1) * m.w)[0].sum(1))


def test_22_an_operator_without_a_rule_freezes_what_it_touches_and_is_listed(kept: Any) -> None:
    model = Small(without_rule)
    model.w = nn.Parameter(torch.randn(8, 8))
    model.c = nn.Linear(6, 5)
    model.d = nn.Linear(5, 3)
    model.function = lambda m, x: without_rule(m, x) + m.d(F.relu(m.c(x)))
    with kept.unchanged(model):
        graph = kept.trace(model, X)
    assert {a.id for a in graph.axes if a.prunable} == {"c"}
    assert any(
        "linalg_qr has no rule (aten.linalg_qr.default): what it touches stays as it is" in n for n in graph.notes
    )
    with kept.unchanged(model):
        pruned = kept.prune(model, X)
    assert pruned.model.c.weight.shape == (3, 6) or pruned.model.c.weight.shape == (2, 6)
    assert any("linalg_qr has no rule" in n for n in pruned.notes)
    with pytest.raises(PlanError, match="cannot prune axis 'a': linalg_qr has no rule") as error:
        pp.apply(model, X, pp.Plan({"a": (0,)}))
    assert "\n" not in str(error.value)


def test_24_a_dynamic_batch_stays_dynamic_in_the_export(kept: Any) -> None:
    model = Small(lambda m, x: m.b(m.a(x).view(x.size(0) * 2, 4).view(x.size(0), -1)))
    with kept.unchanged(model):
        pruned = kept.prune(model, X[:1])
    file = kept.export(pruned, X[:1])
    for batch in (1, 2, 7):
        x = torch.randn(batch, 6)
        torch.testing.assert_close(run(file, x)[0], pruned.model(x), rtol=1e-4, atol=1e-5)


def test_24_further_dynamic_dims_stay_dynamic(kept: Any) -> None:
    model = Small(plain)
    pruned = pp.prune(model, torch.randn(2, 5, 6), ratio=0.5, dynamic={"input": [1]})
    for length in (1, 5, 9):
        assert pruned.program.module(torch.randn(3, length, 6)).shape == (3, length, 3)
    fixed = Small(lambda m, x: plain(m, x).view(x.shape[0], 15))
    words = ("fixes dimension 1 of 'input'", "to 5", "x.shape[1] or -1")
    kept.trace = lambda model, example: pp.trace(model, example, dynamic={"input": [1]})
    kept.refused("trace", fixed, torch.randn(2, 5, 6), CaptureError, *words)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"logits": y, "none": None},
        lambda y: (y, y * 2),
        lambda y: [y, (y, {"deep": y})],
        lambda y: (None, y),
    ],
    ids=["dict", "tuple", "nested", "None"],
)
def test_25_structured_outputs(kept: Any, wrap: Callable[[Any], Any]) -> None:
    model = Small(lambda m, x: wrap(plain(m, x)))
    with kept.unchanged(model):
        pruned = kept.prune(model, X)
    structure = torch.utils._pytree.tree_structure
    assert structure(pruned.model(X)) == structure(pruned.program.module(X)) == structure(model(X))
    again = pp.load(pp.save(pruned, kept.folder / "saved"))
    assert structure(again.model(X)) == structure(model(X))
    tensors = [y for y in torch.utils._pytree.tree_leaves(pruned.model(X)) if y is not None]
    for ours, theirs in zip(run(kept.export(pruned, X), X), tensors, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["trace", "prune"])
def test_25_an_output_without_a_tensor_is_refused(kept: Any, way: str) -> None:
    model = Small(lambda m, x: {"none": None})
    kept.refused(
        way, model, X, CaptureError, "forward of Small returns no tensor (NoneType)", "return what it computes"
    )
    kept.refused("export", model, X, TargetError, "the network returns no tensor")


def deep(layers: int) -> nn.Sequential:
    return nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(4, 4), nn.ReLU())), nn.Linear(4, 2))


def wide(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, channels), nn.ReLU(), nn.Linear(channels, 2))


def traced_and_pruned(model: nn.Sequential) -> None:
    """Every axis is found, two are pruned: the work of one call."""
    pruned = pp.prune(model, torch.randn(2, 4), ratio=0.25, axes=lambda axis: axis.id in ("0", "2"))
    assert pruned.model[0].out_features == model[0].out_features * 3 // 4


def seconds(model: nn.Sequential) -> float:
    started = time.process_time()
    traced_and_pruned(model)
    return time.process_time() - started


def peak_bytes(model: nn.Sequential) -> int:
    """Of Python's and NumPy's memory; of the tensors those that surgery makes are the network's size."""
    tracemalloc.start()
    try:
        pp.trace(model, torch.randn(2, 4))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


GROWTH = 9
"""Four times the layers cost four times as much where the cost is linear, and sixteen times where it is quadratic."""


@pytest.mark.slow
def test_31_a_hundred_layers_cost_little_more_per_layer_than_25() -> None:
    seconds(deep(5))
    assert seconds(deep(100)) < GROWTH * seconds(deep(25))
    assert peak_bytes(deep(100)) < GROWTH * peak_bytes(deep(25))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_31_a_thousand_layers_cost_little_more_per_layer_than_250() -> None:
    seconds(deep(5))
    assert seconds(deep(1000)) < GROWTH * seconds(deep(250))
    assert peak_bytes(deep(1000)) < GROWTH * peak_bytes(deep(250))


def test_31_a_hundred_thousand_channels_cost_little_more_per_channel_than_a_quarter_of_them() -> None:
    seconds(wide(100))
    assert seconds(wide(100_000)) < GROWTH * seconds(wide(25_000))
    assert peak_bytes(wide(100_000)) < GROWTH * peak_bytes(wide(25_000))


@pytest.mark.parametrize("way", ["trace", "prune", "export"])
def test_32_a_module_that_contains_itself_is_refused(kept: Any, way: str) -> None:
    model = Small(plain)
    model.a.parent = model
    words = ("module 'a.parent' contains itself", "keep such a reference in a list")
    kept.refused(way, model, X, ModelError, *words)


def test_32_a_module_that_stands_in_two_places_is_none(kept: Any) -> None:
    model = Small(plain)
    model.again = model.a
    pruned = kept.prune(model, X)
    assert pruned.model.again is pruned.model.a
    assert pruned.model.a.weight.shape == (4, 6)
