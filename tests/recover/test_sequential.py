"""Least squares along the network, on captured networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from paretoprune import graph as graphs
from paretoprune.core.errors import DataError
from paretoprune.core.graph import Example
from paretoprune.core.plan import Plan
from paretoprune.recover import collect_grams, reconstruct_program, reconstruct_sequentially


class Deep(nn.Module):
    """Three convolutions with batch norm, the second depthwise, and a linear head."""

    def __init__(self, width: int = 12, depthwise: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width if depthwise else 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        result: Tensor = self.head(F.relu(self.conv3(x)).mean(dim=(2, 3)))
        return result


def made(seed: int = 0, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Deep(**options)
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, std=0.3)
                nn.init.uniform_(part.running_var, 0.5, 1.5)
        return model.eval()


def traced(seed: int = 0, **options: Any) -> graphs.TracedGraph:
    return graphs.trace(made(seed, **options), torch.randn(2, 3, 8, 8))


def keeping(graph: graphs.TracedGraph, **widths: int) -> graphs.Cut:
    kept = {f"{name}": tuple(range(width)) for name, width in widths.items()}
    return graphs.cut(graph, Plan(kept, graph.fingerprint))


def error(graph: graphs.TracedGraph, cut: graphs.Cut, images: list[Tensor]) -> float:
    x = torch.cat(images)
    with torch.no_grad():
        whole, small = graph.program.module(x), cut.program.module(x)
    return float((whole - small).square().mean() / whole.var())


def test_where_nothing_is_gone_nothing_changes(images: list[Tensor]) -> None:
    graph = traced()
    cut = keeping(graph)
    before = copy.deepcopy(cut.program.module.state_dict())
    done = reconstruct_sequentially(graph.program, cut.program, cut.kept, images)
    assert done.layers == ()
    assert done.samples == 128
    assert not done.fewer
    assert all(torch.equal(before[k], v) for k, v in cut.program.module.state_dict().items())


def test_the_first_layer_that_lost_inputs_is_fitted_as_by_itself(images: list[Tensor]) -> None:
    graph = traced()
    alone, along = keeping(graph, conv1=7), keeping(graph, conv1=7)
    grams = collect_grams(graph.program, graph.program.contractions, images, rows_cap=10**9)
    tensors = graphs.tensors_of(graph.program.module)
    (first,) = reconstruct_program(tensors, alone.program, alone.kept, grams, damping=1e-9)
    layers = reconstruct_sequentially(
        graph.program, along.program, along.kept, images, rows_cap=10**9, damping=1e-9
    ).layers
    assert [r.weight for r in layers] == ["conv2.weight", "conv3.weight", "head.weight"]
    assert layers[0].error == pytest.approx(first.error, rel=1e-3)
    one, other = (graphs.tensors_of(c.program.module) for c in (alone, along))
    torch.testing.assert_close(one["conv2.weight"], other["conv2.weight"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(one["bn2.running_mean"], other["bn2.running_mean"], rtol=1e-3, atol=1e-4)


@settings(max_examples=6)
@given(seed=st.integers(0, 999), widths=st.tuples(st.integers(4, 11), st.integers(4, 11), st.integers(4, 11)))
def test_it_is_nearer_to_the_original_than_layer_by_layer(seed: int, widths: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(32, 3, 8, 8, generator=generator).cumsum(dim=-1) for _ in range(2)]
    graph = traced(seed)
    shapes = dict(zip(("conv1", "conv2", "conv3"), widths, strict=True))
    alone, along = keeping(graph, **shapes), keeping(graph, **shapes)
    grams = collect_grams(graph.program, graph.program.contractions, images)
    reconstruct_program(graphs.tensors_of(graph.program.module), alone.program, alone.kept, grams)
    reconstruct_sequentially(graph.program, along.program, along.kept, images)
    assert error(graph, along, images) <= 1.02 * error(graph, alone, images)


def test_a_batch_norm_behind_a_depthwise_layer_follows_what_enters_it(images: list[Tensor]) -> None:
    graph = traced(depthwise=True)
    cut = keeping(graph, conv1=6)
    with torch.no_grad():
        cut.program.module.conv2.weight.mul_(1.7)  # as if an earlier step had changed it
    reconstruct_sequentially(graph.program, cut.program, cut.kept, images)
    left, right = [], []
    contraction = next(c for c in graph.program.contractions if c.weight == "conv3.weight")
    for x in images:
        graph.program.observe(Example((x,)), {contraction.node: left.append})
        cut.program.observe(Example((x,)), {contraction.node: right.append})
    torch.testing.assert_close(torch.cat(right), torch.cat(left)[:, :6], rtol=1e-3, atol=1e-3)


def test_a_shared_weight_is_left_alone_and_said(images: list[Tensor]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.both, self.head = nn.Linear(192, 10), nn.Linear(10, 10), nn.Linear(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.into(x.flatten(1)))
            result: Tensor = self.head(torch.relu(self.both(torch.relu(self.both(x)))))
            return result

    graph = graphs.trace(Twice().eval(), torch.randn(2, 3, 8, 8))
    axis = next(a for a in graph.axes if a.prunable)
    cut = graphs.cut(graph, Plan({axis.id: tuple(range(6))}, graph.fingerprint))
    done = reconstruct_sequentially(graph.program, cut.program, cut.kept, images)
    assert all("share the weight" in r.left for r in done.layers if r.weight == "both.weight")


def test_fewer_samples_walk_where_memory_is_short_and_it_says_so(images: list[Tensor]) -> None:
    graph = traced()
    cut = keeping(graph, conv1=7)
    done = reconstruct_sequentially(graph.program, cut.program, cut.kept, images, memory=300_000)
    assert done.fewer
    assert 2 <= done.samples < 128


def test_modes_are_put_back_and_the_original_is_not_touched(images: list[Tensor]) -> None:
    graph = traced()
    cut = keeping(graph, conv1=7)
    cut.program.module.train()
    before = copy.deepcopy(graph.program.module.state_dict())
    reconstruct_sequentially(graph.program, cut.program, cut.kept, images)
    assert cut.program.module.training
    assert not graph.program.module.training
    assert all(torch.equal(before[k], v) for k, v in graph.program.module.state_dict().items())


def test_no_batches_and_values_that_are_not_finite_are_refused(images: list[Tensor]) -> None:
    graph = traced()
    cut = keeping(graph, conv1=7)
    with pytest.raises(DataError, match="no calibration batch"):
        reconstruct_sequentially(graph.program, cut.program, cut.kept, [])
    images[0][0, 0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        reconstruct_sequentially(graph.program, cut.program, cut.kept, images)


class Stacked(nn.Module):
    """Two recurrent layers; of the first, the last unit of each direction does what the first unit does."""

    def __init__(self, kind: Any, both: bool, bias: bool) -> None:
        super().__init__()
        self.first = kind(4, 6, bidirectional=both, bias=bias, batch_first=True)
        self.second = kind(12 if both else 6, 5, bidirectional=both, bias=bias)
        with torch.no_grad():
            for name, p in self.first.named_parameters():
                gates = p.view(-1, 6, *p.shape[1:])
                if name.startswith("weight_hh"):
                    p[:, -1] = 0
                gates[:, -1] = gates[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.first(x)
        result: Tensor = self.second(x.transpose(0, 1))[0]
        return result.transpose(0, 1)


@pytest.mark.parametrize(
    ("kind", "both", "bias"),
    [
        pytest.param(nn.LSTM, False, True, marks=pytest.mark.slow),
        (nn.LSTM, True, False),
        (nn.GRU, True, True),
        pytest.param(nn.GRU, False, False, marks=pytest.mark.slow),
        pytest.param(nn.RNN, True, True, marks=pytest.mark.slow),
    ],
)
def test_a_recurrent_layer_makes_up_for_a_unit_that_another_one_doubles(kind: Any, both: bool, bias: bool) -> None:
    """What is left determines the input that is gone, so that the network answers as before."""
    torch.manual_seed(0)
    model, batches = Stacked(kind, both, bias).eval(), [torch.randn(16, 7, 4) for _ in range(4)]
    graph = graphs.trace(model, batches[0][:2])
    cut = keeping(graph, first=5)
    wrong = (cut.program.module(batches[0]) - model(batches[0])).abs().max()
    done = reconstruct_sequentially(graph.program, cut.program, cut.kept, batches)
    right = (cut.program.module(batches[0]) - model(batches[0])).abs().max()
    assert len(done.layers) == (2 if both else 1)
    assert not any(layer.left for layer in done.layers)
    assert wrong > 0.01
    assert right < 0.01 * wrong  # the damping is what is left
