"""Faults of the surgery: FAULTS 34, 35 and 37, and batch norms that see one sample (23)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import paretoprune as pp
from paretoprune import graph as graphs
from paretoprune.core.errors import PlanError, PruneError, SurgeryError, UsageError
from paretoprune.core.plan import Plan
from paretoprune.graph import surgery

pytestmark = pytest.mark.fault
X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(F.relu(self.a(x)))


class With(Small):
    """Small, with another forward."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.function = forward

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def one_line(error: pytest.ExceptionInfo[PruneError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 3))


def test_23_batches_of_one_sample_are_as_good_as_one_batch(kept: Any) -> None:
    model, many = normed(), torch.randn(64, 6)
    with kept.unchanged(model):
        single = pp.prune(model, X, ratio=0.5, calibration=list(many.split(1)))
        whole = pp.prune(model, X, ratio=0.5, calibration=[many])
    torch.testing.assert_close(single.model.state_dict(), whole.model.state_dict(), rtol=1e-3, atol=1e-4)


def test_23_a_single_sample_changes_no_weight(kept: Any) -> None:
    """It has no variance: only constants can be taken from it."""
    model = normed()
    with kept.unchanged(model):
        single = pp.prune(model, X, ratio=0.5, calibration=[X[:1]])
        plain = pp.prune(model, X, ratio=0.5)
    torch.testing.assert_close(single.model[4].weight, plain.model[4].weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(single.model.eval()(X[:1]), model.eval()(X[:1]), rtol=1e-3, atol=1e-3)


def test_23_an_example_of_one_sample_is_enough_in_any_mode(kept: Any) -> None:
    model = normed().train()
    with kept.unchanged(model):
        assert kept.prune(model, X[:1]).model[1].num_features == 4
        assert kept.export(model, X[:1]).is_file()


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9])
def test_34_a_surgery_that_is_wrong_is_never_returned(kept: Any, monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    """The positions that are kept in one of two tensors are others."""
    right = surgery.kept_indices
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    assert pp.prune(model, X, ratio=ratio).model is not None
    calls = iter(range(10**6))
    monkeypatch.setattr(surgery, "kept_indices", lambda e, k: (right(e, k) + next(calls)) % e.size)
    if ratio:
        with kept.unchanged(model), pytest.raises(SurgeryError, match="after pruning '0'; ") as error:
            pp.prune(model, X, ratio=ratio)
        assert "differs from the dead-channel reference by" in one_line(error)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"ratio": 1.0}, PlanError, "cannot prune axis 'a' to 0 of 8 positions: at least 1 must stay (floor=1); lower"),
        ({"ratio": {"a": 1.0}}, PlanError, "cannot prune axis 'a' to 0 of 8 positions"),
        ({"ratio": 0.9, "floor": 4}, PlanError, "to 1 of 8 positions: at least 4 must stay (floor=4); lower ratio=0.9"),
        ({"ratio": 0.5, "floor": 0}, UsageError, "floor=0: give a whole number of at least 1"),
        ({"ratio": 0.5, "align": 0}, UsageError, "align=0: give a whole number of at least 1"),
        ({"ratio": -1}, UsageError, "ratio=-1 for '*': give the share of positions to remove, from 0 to below 1"),
        ({"ratio": float("nan")}, UsageError, "ratio=nan for '*'"),
        ({"ratio": 1.5}, UsageError, "ratio=1.5 for '*'"),
        ({"ratio": {"z": 0.5}}, UsageError, "ratio names 'z', which matches no axis; there are 'a'"),
        ({"macs": 1e-9}, PlanError, "with these axes at their floor, 0.125 of the MACs are left; ask for at least"),
        ({"macs": 0}, UsageError, "macs=0: give the share of the MACs to keep, above 0 and at most 1"),
        ({}, UsageError, "give either ratio= (share of positions to remove) or macs= (share of MACs to keep)"),
    ],
    ids=str,
)
def test_35_no_axis_is_pruned_below_its_floor(
    kept: Any, options: dict[str, Any], kind: type[PruneError], words: str
) -> None:
    model = Small()
    with kept.unchanged(model), pytest.raises(kind) as error:
        pp.prune(model, X, **options)
    assert words in one_line(error)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"a": ()}, "to 0 of 8 positions: at least 1 must stay"),
        ({"a": (8,)}, "keeps position 8 of axis 'a', which has positions 0 to 7"),
        ({"a": (-1, 2)}, "keeps position -1"),
        ({"c": (1,)}, "names axis 'c', which this network does not have; it has: a"),
        ({"b": (1,)}, "cannot prune axis 'b': it is an output of the network"),
    ],
)
def test_35_a_plan_that_does_not_fit_is_refused(kept: Any, plan: dict[str, tuple[int, ...]], words: str) -> None:
    model = Small()
    with kept.unchanged(model), pytest.raises(PlanError) as error:
        pp.apply(model, X, Plan(plan))
    assert words in one_line(error)


def test_37_the_callers_model_is_left_alone(kept: Any) -> None:
    calls: list[str] = []
    model = normed().train()
    model[1].eval()
    model(X).sum().backward()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, n=name: calls.append(n))
        module.register_forward_pre_hook(lambda *_, n=name: calls.append(n))
    example, batches = X.clone(), [torch.randn(8, 6)]
    with kept.unchanged(model):
        graph = pp.trace(model, example)
    with kept.unchanged(model):
        pruned = pp.prune(model, example, ratio=0.5, calibration=batches)
    with kept.unchanged(model):
        pp.apply(model, example, pruned.plan)
    assert calls == []
    assert torch.equal(example, X)
    assert any("hooks" in n for n in graph.notes)
    modes = {n: m.training for n, m in model.named_modules()}
    assert modes == {n: m.training for n, m in pruned.model.named_modules()}
    assert all(p.grad is None for p in pruned.model.parameters())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in pruned.model.parameters()}
    with kept.unchanged(model):
        kept.export(model, example)


def test_37_the_result_shares_nothing_with_the_callers_model(kept: Any) -> None:
    model = normed()
    pruned = pp.prune(model, X, ratio=0.0)
    with kept.unchanged(model), torch.no_grad():
        for network in (pruned.model, pruned.program.module):
            for tensor in (*network.parameters(), *network.buffers()):
                tensor.add_(1)


# -- the self-check itself -------------------------------------------------------------------------------------------


def test_34_the_self_check_catches_a_broken_surgery(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graphs.trace(Small(), X)
    plan = Plan({"a": (0, 3, 4)})
    graphs.check(graph, plan)
    right = surgery.kept_indices
    monkeypatch.setattr(surgery, "kept_indices", lambda e, k: (right(e, k) + 1) % e.size)
    with pytest.raises(SurgeryError, match="differs from the dead-channel reference by .* after pruning 'a'") as error:
        graphs.check(graph, plan)
    one_line(error)


def test_34_the_self_check_names_the_axis_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    graph = graphs.trace(model, X)
    right = surgery.kept_indices
    monkeypatch.setattr(
        surgery, "kept_indices", lambda e, k: (right(e, k) + 1) % e.size if e.size == 5 else right(e, k)
    )
    with pytest.raises(SurgeryError, match="after pruning '2';"):
        graphs.check(graph, Plan({"0": (0, 1), "2": (1, 2)}))


def test_34_a_constant_output_proves_nothing() -> None:
    model = With(lambda m, x: m.b(F.relu(m.a(x))) * 0 + m.b.bias)
    graph = graphs.trace(model, X)
    with pytest.raises(SurgeryError, match="the self-check proves nothing") as error:
        graphs.check(graph, Plan({"a": (0, 1)}))
    one_line(error)


def test_34_own_zeros_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch that its last layer switches off is checked with random weights."""
    model = With(lambda m, x: x + F.pad(m.b(F.relu(m.a(x))), (0, 3)))
    nn.init.zeros_(model.b.weight)
    graph = graphs.trace(model, X)
    plan = Plan({"a": (0, 3, 4)})
    graphs.check(graph, plan)
    right = surgery.kept_indices
    monkeypatch.setattr(surgery, "slice_tensor", lambda t, k, *_: surgery_swapped(t, k))

    def surgery_swapped(tensor: torch.Tensor, kept: Any) -> torch.Tensor:
        for dim, indices in enumerate(kept):
            if indices is not None:
                shift = dim if tensor.ndim == 2 else 0
                index = torch.from_numpy((indices + shift) % tensor.shape[dim])
                tensor = tensor.index_select(dim, index)
        return tensor.clone()

    assert right is surgery.kept_indices
    with pytest.raises(SurgeryError):
        graphs.check(graph, plan)
