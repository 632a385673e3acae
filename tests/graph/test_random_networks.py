"""Random small networks, random plans: everything that surgery promises, at once."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from paretoprune import graph as graphs
from paretoprune.core.plan import Plan
from paretoprune.graph import Cut, TracedGraph
from random_cases import PLANS, refused, sampled

BLOCKS = (
    *("conv", "grouped", "depthwise", "norm", "act", "gate", "residual", "dense", "split", "pad", "pool", "shuffle"),
    *("glu", "prelu", "scale", "standard", "transposed", "upsample", "pixels", "unit", "roll", "maximum"),
)


class StandardConv(nn.Conv2d):
    """Scaled weight standardisation (Brock et al. 2021, eq. 1), every filter over its own entries."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Scale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))


class RandomNet(nn.Module):
    """A stem, the named blocks in a row over a list of live branches, and a linear head."""

    def __init__(self, blocks: list[tuple[str, int]], tied: bool, norms: bool):
        super().__init__()
        self.blocks, self.norms = blocks, norms
        self.layers = nn.ModuleList()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        width = 8
        for kind, n in blocks:
            width = self._grow(kind, n, width)
        self.neck = nn.Linear(width, 6)
        self.twin = nn.Linear(6, 6)
        self.other = nn.Linear(6, 6)
        if tied:
            self.other.weight = self.twin.weight
        self.head = nn.Linear(6, 4)

    def _grow(self, kind: str, n: int, width: int) -> int:
        made: list[nn.Module] = []
        out = width
        if kind == "conv":
            out = 4 + 2 * n
            made = [nn.Conv2d(width, out, 3, stride=1 + n % 2, padding=1, bias=n % 3 > 0)]
        elif kind == "grouped" and width % 2 == 0:
            out = 4 * (1 + n % 3)
            made = [nn.Conv2d(width, out, 3, padding=1, groups=2)]
        elif kind == "depthwise":
            made = [nn.Conv2d(width, width, 3, padding=1, groups=width)]
        elif kind == "norm":
            made = [nn.GroupNorm(1, width) if self.norms and n % 2 else nn.BatchNorm2d(width)]
        elif kind == "gate":
            made = [nn.Linear(width, 3), nn.Linear(3, width)]
        elif kind == "residual":
            made = [nn.Conv2d(width, 2 + n, 1), nn.Conv2d(2 + n, width, 3, padding=1)]
        elif kind == "dense":
            made, out = [nn.Conv2d(width, 2 + n, 3, padding=1)], width + 2 + n
        elif kind == "split" and width > 3:
            made, out = [nn.Conv2d(width - 2, 3, 1)], 5
        elif kind == "pad":
            out = width + 2
        elif kind == "glu":
            made, out = [nn.Conv2d(width, 2 * (3 + n), 1)], 3 + n
        elif kind == "prelu":
            made = [nn.PReLU(width if n % 2 else 1)]
        elif kind == "scale":
            made = [Scale(width)]
        elif kind == "standard" and self.norms:
            made, out = [StandardConv(width, 4 + n, 3, padding=1)], 4 + n
        elif kind == "transposed":
            made, out = [nn.ConvTranspose2d(width, 3 + n, 2, 2)], 3 + n
        elif kind == "pixels":
            made, out = [nn.Conv2d(width, 4 * (2 + n % 3), 3, padding=1)], 2 + n % 3
        self.layers.append(nn.ModuleList(made))
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for (kind, n), layers in zip(self.blocks, self.layers, strict=True):
            x = self._step(kind, n, list(layers), x)
        x = F.relu(self.neck(x.mean((2, 3))))
        x = F.relu(self.other(F.relu(self.twin(x))))
        return self.head(x)

    def _step(self, kind: str, n: int, layers: list[nn.Module], x: torch.Tensor) -> torch.Tensor:
        if kind == "act":
            return (F.relu, torch.tanh, torch.sigmoid, F.gelu)[n % 4](x)
        if kind == "gate":
            down, up = layers
            return x * torch.sigmoid(up(F.relu(down(F.adaptive_avg_pool2d(x, 1).flatten(1)))))[:, :, None, None]
        if kind == "residual":
            narrow, wide = layers
            return F.relu(x + wide(F.relu(narrow(x))))
        if kind == "dense":
            return torch.cat([x, layers[0](x)], 1)
        if kind == "split":
            if not layers:
                return x
            first, rest = x.split([2, x.shape[1] - 2], 1) if n % 2 else (x[:, :2], x[:, 2:])
            return torch.cat([layers[0](rest), first], 1)
        if kind == "pad":
            return F.pad(x, (0, 0, 0, 0, 1, 1))
        if kind == "pool":
            return F.max_pool2d(x, 2) if n % 2 and x.shape[-1] > 1 else F.avg_pool2d(x, 3, 1, 1)
        if kind == "shuffle" and x.shape[1] % 2 == 0:
            b, c, h, w = x.shape
            return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        if kind == "glu":
            return F.glu(layers[0](x), 1)
        if kind == "scale":
            return x + x.relu() * layers[0].gamma[:, None, None]  # type: ignore[index]
        if kind == "transposed":
            return F.avg_pool2d(layers[0](x), 2)
        if kind == "upsample":
            return F.avg_pool2d(F.interpolate(x, scale_factor=2, mode="bilinear" if n % 2 else "nearest"), 2)
        if kind == "pixels":
            return F.avg_pool2d(F.pixel_shuffle(layers[0](x), 2), 2)
        if kind == "unit":
            return F.normalize(x, dim=1)
        if kind == "roll":
            return x.roll((1, -1), (2, 3)) if n % 2 else x.flip(3)
        if kind == "maximum":
            return x * x.relu().amax(1, keepdim=True)
        return layers[0](x) if layers else x


@st.composite
def networks(draw: st.DrawFn) -> RandomNet:
    blocks = draw(st.lists(st.tuples(st.sampled_from(BLOCKS), st.integers(0, 5)), min_size=2, max_size=6))
    return RandomNet(blocks, tied=draw(st.booleans()), norms=draw(st.booleans()))


def some_plan(graph: TracedGraph, seed: int) -> Plan:
    rng = np.random.default_rng(seed)
    kept = {}
    for axis in graph.axes:
        if axis.prunable and rng.random() < 0.8:
            count = int(rng.integers(1, axis.size + 1))
            kept[axis.id] = tuple(sorted(rng.choice(axis.size, count, replace=False).tolist()))
    return Plan(kept, graph.fingerprint)


def measured_macs(module: nn.Module, x: torch.Tensor) -> int:
    """torch's own counter, which counts a multiply-accumulate as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x[:1])
    return int(counter.get_total_flops()) // 2


def assert_counts(graph: TracedGraph, plan: Plan, cut: Cut, x: torch.Tensor, *, again: bool) -> None:
    """`again`: the pruned network is captured in its turn, which takes as long as all the rest."""
    widths = {name: len(kept) for name, kept in plan.kept.items()}
    module = cut.program.module
    assert graph.parameters(widths) == sum(p.numel() for p in module.parameters())
    assert graph.macs(widths) == measured_macs(module, x)
    if again:
        other = graphs.trace(module, x)
        assert (graph.parameters(widths), graph.macs(widths)) == (other.parameters(), other.macs())
        assert [(s.inputs, s.outputs, s.groups) for s in graph.layers(widths)] == [
            (s.inputs, s.outputs, s.groups) for s in other.layers()
        ]


def assert_kept_reproduces(model: nn.Module, cut: Cut) -> None:
    pruned, originals = graphs.tensors_of(cut.program.module), graphs.tensors_of(model)
    for name, tensor in pruned.items():
        want = originals[name].detach()
        for dim, kept in enumerate(cut.kept[name]):
            want = want if kept is None else want.index_select(dim, torch.from_numpy(kept))
        assert torch.equal(want, tensor)


def assert_saved(module: Any, x: torch.Tensor) -> None:
    tensors = graphs.tensors_of(module)
    trainable = {n: p.requires_grad for n, p in module.named_parameters(remove_duplicate=False)}
    loaded = graphs.load(json.loads(json.dumps(graphs.dump(module))), tensors, trainable)
    with torch.no_grad():
        assert torch.equal(module(x), loaded(x))
    assert (loaded.other.weight is loaded.twin.weight) == (module.other.weight is module.twin.weight)


def run_network(model: RandomNet, seed: int, tools: Any) -> None:
    """Trace once; every plan is a case."""
    tools.randomise(model, seed)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    before = copy.deepcopy(model.state_dict())
    graph = graphs.trace(model, x)
    for number in range(PLANS):
        run_case(model, graph, some_plan(graph, PLANS * seed + number), x, tools, again=not number and seed % 4 == 0)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def run_case(model: RandomNet, graph: TracedGraph, plan: Plan, x: torch.Tensor, tools: Any, *, again: bool) -> None:
    """Cut, and compare with every reference there is.

    A plan is refused if what it leaves gives the same for every input of the check.
    """
    cut = graphs.cut(graph, Plan.from_json(json.loads(plan.dumps())))
    if refused(graph, plan, cut):
        return
    module = cut.program.module
    if not model.norms:
        tensors = {
            n: t.detach().double() if t.is_floating_point() else t for n, t in graphs.tensors_of(graph.captured).items()
        }
        with torch.no_grad():
            got = graphs.cut(graph, plan, tensors).program.module(x.double())
            torch.testing.assert_close(got, tools.zeroed(model, graph, plan)(x.double()), rtol=1e-9, atol=1e-9)
    assert_counts(graph, plan, cut, x, again=again)
    assert_kept_reproduces(model, cut)
    assert_saved(module, x)
    rebuilt, reason = graphs.rebuild(model, graph, cut)
    assert (rebuilt is None) == bool(reason)
    if rebuilt is not None:
        assert type(rebuilt) is RandomNet
        torch.testing.assert_close(rebuilt(x), module(x), rtol=1e-3, atol=1e-4)


@sampled
@given(networks(), st.integers(0, 999))
def test_random_networks(tools: Any, model: RandomNet, seed: int) -> None:
    run_network(model, seed, tools)
