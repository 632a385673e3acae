"""Regions without gradients, and constants made from counted positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from paretoprune.core.errors import ModelError
from paretoprune.core.plan import Plan
from paretoprune.graph import check, cut, trace

torch.manual_seed(0)


class Rotary(nn.Module):
    """A table of angles made under no_grad with autocast off; `gate` is applied under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.gate, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("frequency", torch.rand(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * self.frequency[None]
            table = torch.cat([angle, angle], -1).cos()
        with torch.no_grad():
            stopped = self.gate(x)
        return self.out(self.into(x) * table + stopped)


def test_regions_are_inlined_and_both_halves_of_a_pair_are_one_axis() -> None:
    graph = trace(Rotary(), torch.randn(2, 5, 6))
    assert not graph.notes
    assert {a.id: a.size for a in graph.axes if a.prunable} == {"into": 4}
    assert {m.name for a in graph.axes if a.id == "into" for m in a.members} >= {"frequency", "into.weight"}
    plan = Plan({"into": (0, 2)})
    check(graph, plan)
    pruned = cut(graph, plan).program.module
    assert pruned.get_buffer("frequency").tolist() == graph.captured.get_buffer("frequency")[[0, 2]].tolist()


def test_gradients_stop_where_the_network_stops_them() -> None:
    model = Rotary()
    graph = trace(model, torch.randn(2, 5, 6))
    x = torch.randn(3, 5, 6)
    grads = []
    for module in (model, graph.program.module):
        module.zero_grad()
        module(x).square().sum().backward()
        grads.append({n: p.grad for n, p in module.named_parameters()})
    assert grads[0]["gate.weight"] is None
    assert grads[1]["gate.weight"] is None
    assert torch.allclose(grads[0]["into.weight"], grads[1]["into.weight"], atol=1e-6)


class Slopes(nn.Module):
    """Each channel is scaled by its number, as ALiBi scales each head."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.into(x) * 2.0 ** -torch.arange(1, 9, dtype=x.dtype))


def test_counted_constants_are_cut_by_index_and_never_made_again() -> None:
    graph = trace(Slopes(), torch.randn(2, 6))
    axis = next(a for a in graph.axes if a.prunable)
    plan = Plan({axis.id: (1, 6)})
    check(graph, plan)
    module = cut(graph, plan).program.module
    assert not [n for n in module.graph.nodes if "arange" in str(n.target)]
    constant = next(b for n, b in module.named_buffers() if n.startswith("folded_constant"))
    assert constant.tolist() == [2.0**-2, 2.0**-7]


class Buffered(nn.Module):
    """A named buffer takes part in arithmetic: a user may load another value into it."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("scale", torch.rand(8) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.into(x) * (self.scale + 1).rsqrt())


def test_named_buffers_are_not_folded() -> None:
    graph = trace(Buffered(), torch.randn(2, 6))
    names = [n for n, _ in graph.program.module.named_buffers()]
    assert names == ["scale"]
    assert {a.id: a.size for a in graph.axes if a.prunable} == {"into": 8}


def test_random_numbers_are_never_folded() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return self.out(self.into(x) + torch.randn(8))

    graph = trace(Noisy(), torch.randn(2, 6))
    assert not [n for n, _ in graph.captured.named_buffers()]
    assert any("random" in note for note in graph.notes)


class Masked(nn.Module):
    """A causal mask of minus infinity in a buffer, as language models keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))
        self.out = nn.Linear(8, 3)
        self.register_buffer("mask", torch.full((5, 5), float("-inf")).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2) + self.mask
        return self.out(scores.softmax(-1) @ self.v(x))


def test_a_mask_of_minus_infinity_is_no_broken_weight() -> None:
    graph = trace(Masked(), torch.randn(2, 5, 6))
    axes = {a.id: (a.size, a.kind) for a in graph.axes if a.prunable}
    assert axes == {"q": (8, "head size"), "v": (8, "head size")}
    check(graph, Plan({"q": (0, 1, 5), "v": (2, 3)}))


def test_infinity_elsewhere_is_refused() -> None:
    model = Masked()
    model.mask[0, 0] = float("inf")
    with pytest.raises(ModelError, match="'mask' holds"):
        trace(model, torch.randn(2, 5, 6))
