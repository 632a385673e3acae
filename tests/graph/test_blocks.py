"""Residual blocks: which are found, what they are called, which may go, and that the rest is exact without them."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from paretoprune import graph as graphs
from paretoprune.core.errors import FileError, PlanError, SurgeryError
from paretoprune.core.plan import Plan
from paretoprune.graph import TracedGraph, blocks, depth, reference, surgery

SHAPE = "it changes the shape"


class Basic(nn.Module):
    """Two convolutions and a shortcut, projected where the width or the stride changes."""

    def __init__(self, width: int, out: int, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        projected = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.shortcut = nn.Identity() if width == out and stride == 1 else projected

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return F.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layer1 = nn.Sequential(Basic(6, 6), Basic(6, 6))
        self.layer2 = nn.Sequential(Basic(6, 10, 2), Basic(10, 10))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(F.relu(self.stem(x)))).mean((2, 3)))


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def names(graph: TracedGraph) -> list[str]:
    return [b.name for b in graph.blocks]


def free(graph: TracedGraph) -> list[str]:
    return [b.name for b in graph.blocks if b.removable]


def why(graph: TracedGraph) -> dict[str, str]:
    return {b.name: b.why for b in graph.blocks if not b.removable}


def double(graph: TracedGraph) -> dict[str, Tensor]:
    return {
        n: t.detach().double() if t.is_floating_point() else t for n, t in graphs.tensors_of(graph.captured).items()
    }


def without(graph: TracedGraph, *patterns: str, kept: dict[str, tuple[int, ...]] | None = None) -> Any:
    """The checked double-precision network without these blocks."""
    plan = Plan(kept or {}, graph.fingerprint, patterns)
    graphs.check(graph, plan)
    return graphs.cut(graph, plan, double(graph)).program.module


def counted(graph: TracedGraph, *patterns: str) -> None:
    """MACs and parameters without the blocks are those of the network that is left."""
    module = graphs.cut(graph, Plan(blocks=patterns)).program.module
    assert graph.parameters({}, patterns) == sum(p.numel() for p in module.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = graphs.trace(module, graph.example)
    assert graph.macs({}, patterns) == again.macs()
    assert [s.outputs for s in graph.layers({}, patterns)] == [s.outputs for s in again.layers()]


# -- which there are --------------------------------------------------------------------------------------------------


def test_a_residual_network_keeps_its_projected_stage_starts(tools: Any) -> None:
    model = tools.randomise(ResNet())
    graph = graphs.trace(model, image())
    assert names(graph) == ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    assert free(graph) == ["layer1.0", "layer1.1", "layer2.1"]
    assert why(graph)["layer2.0"].startswith(SHAPE)
    block = graph.blocks[0]
    assert block.parameters == 2 * 6 * 6 * 9 + 4 * 6
    assert block.macs == 2 * 6 * 6 * 9 * 64
    assert block.weights == ("layer1.0.conv1.weight", "layer1.0.conv2.weight")
    counted(graph, "layer1.1")
    counted(graph, "*")
    dead = copy.deepcopy(model).double()
    with torch.no_grad():
        for name in ("layer1.1", "layer2.1"):
            dead.get_submodule(name).bn2.weight.zero_()
            dead.get_submodule(name).bn2.bias.zero_()
        module, x = without(graph, "layer?.1"), torch.randn(3, 3, 8, 8, dtype=torch.double)
        torch.testing.assert_close(module(x), dead(x), rtol=1e-12, atol=1e-12)
    left = set(graphs.tensors_of(module))
    assert left == {n for n in graphs.tensors_of(model) if not n.startswith(("layer1.1.", "layer2.1."))}


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, pre: bool):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm1, self.norm2, self.pre = nn.LayerNorm(width), nn.LayerNorm(width), pre

    def attend(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False)[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            x = x + self.attend(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.mlp(x))


class Transformer(nn.Module):
    def __init__(self, pre: bool):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 5)
        self.layers = nn.ModuleList(Layer(8, 2, pre) for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


@pytest.mark.parametrize("pre", [True, False])
def test_a_transformer(tools: Any, pre: bool) -> None:
    model = tools.randomise(Transformer(pre))
    graph = graphs.trace(model, torch.randint(11, (2, 5)))
    assert names(graph) == free(graph) == [f"layers.{i}.{part}" for i in range(3) for part in ("attn", "mlp")]
    counted(graph, "layers.1.attn", "layers.2.mlp")
    with torch.no_grad():
        module, ids = without(graph, "layers.1.attn", "layers.2.mlp"), torch.randint(11, (3, 5))
        dead = copy.deepcopy(model).double()
        for part in (dead.layers[1].attn.out_proj, dead.layers[2].mlp[2]):
            part.weight.zero_()
            part.bias.zero_()
        torch.testing.assert_close(module(ids), dead(ids), rtol=1e-12, atol=1e-12)
    left = set(graphs.tensors_of(module))
    assert ("layers.1.norm1.weight" in left) is not pre
    assert "layers.1.attn.in_proj_weight" not in left


def test_llama() -> None:
    pytest.importorskip("transformers")
    from zoo.networks import NETWORKS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, example = NETWORKS["transformers/llama"].build()
    graph = graphs.trace(model, example)
    parts = [f"model.layers.{i}.{part}" for i in range(2) for part in ("self_attn", "mlp")]
    assert names(graph) == free(graph) == parts
    counted(graph, "model.layers.1.*")
    layer = {n for n in graphs.tensors_of(model) if n.startswith("model.layers.1.")}
    left = set(graphs.tensors_of(without(graph, "model.layers.1.*")))
    assert not layer & left
    assert set(graphs.tensors_of(model)) - layer <= left


class Unet(nn.Module):
    """Skips that are joined (`cat`) or added."""

    def __init__(self, added: bool):
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.leave, self.added = nn.Conv2d(4 if added else 8, 2, 1), added

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.enter(x))
        y = self.up(F.relu(self.down(x)))
        return self.leave(x + y if self.added else torch.cat([x, y], 1))


def test_a_u_net_with_joined_skips_has_no_block_and_one_with_added_skips_has(tools: Any) -> None:
    assert names(graphs.trace(tools.randomise(Unet(added=False)), image())) == []
    graph = graphs.trace(tools.randomise(Unet(added=True)), image())
    assert free(graph) == ["down"]  # the first of `down` and `up`, which have no module in common
    assert set(graphs.tensors_of(without(graph, "down"))) == {
        "enter.weight", "enter.bias", "leave.weight", "leave.bias"
    }  # fmt: skip


def dense(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    x = torch.cat([x, F.relu(m.b(x))], 1)
    return m.head(torch.cat([x, F.relu(m.c(x))], 1).mean((2, 3)))


def gated(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.head((x * torch.sigmoid(m.up(F.relu(m.down(x.mean((2, 3))))))[:, :, None, None]).mean((2, 3)))


def activation(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y = 0.5 * y * (1 + torch.tanh(y + 0.044715 * y**3)) + y * y
    return m.head((y + y.sigmoid()).mean((2, 3)))


def norm_only(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.head((y + m.norm(y)).mean((2, 3)))


@pytest.mark.parametrize("forward", [dense, gated, activation, norm_only])
def test_no_block(tools: Any, forward: Callable[..., Any]) -> None:
    parts = {
        "a": nn.Conv2d(3, 6, 3, padding=1),
        "b": nn.Conv2d(6, 2, 3, padding=1),
        "c": nn.Conv2d(8, 2, 3, padding=1),
        "down": nn.Linear(6, 3),
        "up": nn.Linear(3, 6),
        "norm": nn.BatchNorm2d(6),
        "head": nn.Linear(10 if forward is dense else 6, 3),
    }
    assert names(graphs.trace(tools.randomise(tools.Net(forward, **parts)), image())) == []


# -- why one cannot go ------------------------------------------------------------------------------------------------


def flat() -> Tensor:
    return torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


def of(tools: Any, forward: Callable[..., Any], *, example: Any = None, **parts: Any) -> TracedGraph:
    layers: dict[str, Any] = {"a": nn.Linear(6, 6), "f": nn.Linear(6, 6), "g": nn.Linear(6, 6), "head": nn.Linear(6, 3)}
    model = tools.randomise(tools.Net(forward, **(layers | parts)))
    return graphs.trace(model, flat() if example is None else example)


def read_outside(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    hidden = F.relu(m.f(x))
    return m.head(x + m.g(hidden)), hidden


def used_twice(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    y = m.f(x)
    return m.head(torch.cat([x + y, y], 1)[:, :6])


def own_shortcut(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.head(m.a(x) + m.g(F.relu(m.f(x))))


def own_shortcut_within(m: Any, x: Tensor) -> Tensor:
    """The inner sum, as in a state space layer, has the same name as the block around it."""
    x = m.a(x)
    y = m.part.up(x)
    y = y * m.part.scale + torch.tanh(F.linear(torch.tanh(y), m.part.square))
    return m.head(x + m.part.down(y))


def test_a_sum_whose_shortcut_is_no_copy_gives_the_name_to_the_block_around_it(tools: Any) -> None:
    part = nn.Module()
    part.up, part.down = nn.Linear(6, 5), nn.Linear(5, 6)
    part.scale, part.square = nn.Parameter(torch.ones(5)), nn.Parameter(torch.randn(5, 5))
    graph = of(tools, own_shortcut_within, part=part)
    assert [(b.name, b.removable) for b in graph.blocks] == [("part#2", False), ("part", True)]
    assert not any(n.startswith("part") for n in graphs.tensors_of(without(graph, "part*")))


def from_nothing(m: Any, x: Tensor) -> Tensor:
    start = m.latent.expand(x.shape[0], -1)
    return m.head(start + m.f(torch.cat([start, x], 1)))


def broadcast(m: Any, x: Tensor) -> Tensor:
    x = torch.stack([m.a(x), x], 1)
    return m.head((x + m.f(x.mean(1, keepdim=True))).mean(1))


def narrower(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.head(x + m.f(x).double())


def scaled(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.head(torch.add(x, m.f(x), alpha=2))


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (read_outside, "within it is read from outside, or is an output"),
        (used_twice, "within it is read from outside, or is an output"),
        (own_shortcut, "its shortcut is no copy of what enters it"),
        (from_nothing, "what it adds to depends on no input"),
        (broadcast, "what it adds is broadcast"),
        (narrower, "it changes"),
        (scaled, "its sum has alpha=2"),
    ],
)
def test_a_block_that_cannot_go_says_why(tools: Any, forward: Callable[..., Any], reason: str) -> None:
    extra: dict[str, Any] = {}
    if forward is from_nothing:
        extra = {"latent": nn.Parameter(torch.randn(1, 6)), "f": nn.Linear(12, 6)}
    if forward is narrower:
        extra = {"head": nn.Linear(6, 3).double()}
    graph = of(tools, forward, **extra)
    (block,) = graph.blocks
    assert not block.removable
    assert reason in block.why
    with pytest.raises(PlanError, match=re.escape(f"cannot remove block '{block.name}' ('{block.name}': {block.why})")):
        graphs.cut(graph, Plan(blocks=(block.name,)))


def subtracted(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.head(x - m.f(x))


def subtracted_from(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.head(m.f(x) - x)


def test_a_difference_is_a_block_where_the_branch_is_taken_away(tools: Any) -> None:
    assert names(of(tools, subtracted_from)) == []
    graph = of(tools, subtracted)
    module, x = without(graph, "f"), flat().double()
    own = double(graph)
    want = F.linear(F.linear(x, own["a.weight"], own["a.bias"]), own["head.weight"], own["head.bias"])
    torch.testing.assert_close(module(x), want, rtol=1e-12, atol=1e-12)


def writes_into_the_sum(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    y = x + m.f(x)
    y[:, 0] = x[:, 1]
    return m.head(y * x)


def writes_into_what_entered(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    y = x + m.f(x)
    x[:, 0] = x[:, 1]
    return m.head(y * x)


@pytest.mark.parametrize("forward", [writes_into_the_sum, writes_into_what_entered])
def test_a_stream_that_is_written_into_stays(tools: Any, forward: Callable[..., Any]) -> None:
    (block,) = of(tools, forward).blocks
    assert not block.removable
    assert "written into" in block.why


def writes_into_an_input(m: Any, x: Tensor) -> Tensor:
    x += m.f(x)
    return m.head(x)


def test_a_sum_that_is_written_into_the_input(tools: Any) -> None:
    """It is a sum of its own in the graph; where it were not, it would have to stay."""
    graph = of(tools, writes_into_an_input)
    for block in graph.blocks:
        if block.removable:
            without(graph, block.name)
        else:
            assert "written into" in block.why


# -- nested, shared, unread -------------------------------------------------------------------------------------------


def nested(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    inner = m.f(x)
    inner = inner + m.g(F.relu(inner))
    return m.head(x + inner)


def test_the_outer_of_two_nested_blocks_takes_the_inner_with_it(tools: Any) -> None:
    graph = of(tools, nested)
    assert free(graph) == ["g", "f"]
    inner, outer = graph.blocks
    assert outer.parameters == inner.parameters + 42
    assert graph.macs({}, ("f",)) == graph.macs({}, ("f", "g")) == graph.macs() - outer.macs
    for which in (("g",), ("f",), ("f", "g")):
        counted(graph, *which)
        without(graph, *which)
    assert set(graphs.tensors_of(without(graph, "f"))) == {"a.weight", "a.bias", "head.weight", "head.bias"}


def shared(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    for _ in range(3):
        x = x + m.f(F.relu(x))
    return m.head(x)


def test_shared_weights_stay_until_their_last_reader_goes(tools: Any) -> None:
    graph = of(tools, shared)
    assert free(graph) == ["f", "f#2", "f#3"]
    assert [b.parameters for b in graph.blocks] == [0, 0, 0]
    assert graph.parameters({}, ("f", "f#3")) == graph.parameters()
    assert graph.parameters({}, ("f*",)) == graph.parameters() - 42
    counted(graph, "f", "f#3")
    counted(graph, "f*")
    assert "f.weight" in graphs.tensors_of(without(graph, "f#2"))
    assert "f.weight" not in graphs.tensors_of(without(graph, "f*"))


def test_tied_weights_stay_tied(tools: Any) -> None:
    tied = nn.Linear(6, 6)

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        x = x + m.f(F.relu(x))
        return m.head(F.relu(m.g(x)))

    twin = nn.Linear(6, 6)
    twin.weight = tied.weight
    graph = of(tools, forward, f=tied, g=twin)
    assert graph.blocks[0].parameters == 6  # its bias alone
    module = graphs.cut(graph, Plan(blocks=("f",))).program.module
    left = graphs.tensors_of(module)
    assert "f.bias" not in left
    assert left["g.weight"] is left.get("f.weight", left["g.weight"])
    counted(graph, "f")


def test_what_is_kept_of_an_axis_of_a_dropped_block_has_no_effect(tools: Any) -> None:
    graph = graphs.trace(tools.randomise(ResNet()), image())
    plain = graphs.cut(graph, Plan(blocks=("layer1.0",)))
    plan = Plan({"layer1.0.conv1": (0, 2)}, blocks=("layer1.0",))
    graphs.check(graph, plan)
    cut = graphs.cut(graph, plan)
    assert graphs.tensors_of(cut.program.module).keys() == graphs.tensors_of(plain.program.module).keys()
    assert torch.equal(cut.program.module(image()), plain.program.module(image()))
    assert graph.macs({"layer1.0.conv1": 2}, ("layer1.0",)) == graph.macs({}, ("layer1.0",))
    assert "layer1.0.conv1.weight" not in cut.kept


def test_contractions_and_norms_of_the_program_are_those_that_are_left(tools: Any) -> None:
    graph = graphs.trace(tools.randomise(ResNet()), image())
    program = graphs.cut(graph, Plan(blocks=("layer1.*",))).program
    assert [c.weight for c in program.contractions if c.weight.startswith("layer1")] == []
    assert [b.mean for b in program.batch_norms if b.mean.startswith("layer1")] == []
    assert len(program.contractions) == len(graph.program.contractions) - 4


# -- names and plans --------------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_blocks(tools: Any) -> None:
    graph = graphs.trace(tools.randomise(ResNet()), image())
    with pytest.raises(PlanError, match=r"there is no block 'layer9': .* residual blocks 'layer1\.0'"):
        graphs.cut(graph, Plan(blocks=("layer9",)))
    with pytest.raises(PlanError, match="this network has no residual block"):
        graphs.cut(graphs.trace(tools.randomise(Unet(added=False)), image()), Plan(blocks=("a",)))
    with pytest.raises(PlanError, match=r"cannot remove block 'layer2\.0\*' .*it changes the shape"):
        graphs.cut(graph, Plan(blocks=("layer2.0*",)))
    assert graphs.cut(graph, Plan(blocks=("layer2.*", "layer1.0"))).blocks == ("layer1.0", "layer2.1")


def test_a_plan_with_blocks_as_json() -> None:
    plan = Plan({"a": (0, 2)}, "abc", ("layer1.1", "layer1.0"))
    data = json.loads(plan.dumps())
    assert (data["schema"], data["blocks"]) == (5, ["layer1.1", "layer1.0"])
    assert Plan.from_json(data) == plan
    assert Plan.from_json({"schema": 1, "kept": {"a": [2, 0]}}) == Plan({"a": (0, 2)})
    assert Plan.from_json({**data, "blocks": ["x", "x"]}).blocks == ("x",)
    for wrong in ("layer1.1", [1], {"a": 1}, None):
        with pytest.raises(PlanError, match="'blocks' is .*; it must be a list of names"):
            Plan.from_json({**data, "blocks": wrong})
    with pytest.raises(FileError, match="schema 6, this version reads up to 5: upgrade"):
        Plan.from_json({**data, "schema": 6})


# -- random stacks, against a reference written by hand ---------------------------------------------------------------


class Stack(nn.Module):
    """Residual blocks of several kinds in a row; `forward` runs the ones that are not in `dropped`."""

    KINDS = ("plain", "normed", "after", "minus", "nested", "gated", "two", "widening")

    def __init__(self, kinds: Sequence[tuple[str, int]]):
        super().__init__()
        self.kinds, self.dropped = kinds, frozenset[str]()
        width = 8
        self.stem = nn.Linear(5, width)
        self.stack = nn.ModuleList()
        for kind, n in kinds:
            out = width + 2 if kind == "widening" else width
            made: dict[str, nn.Module] = {"up": nn.Linear(width, 2 + n), "down": nn.Linear(2 + n, out)}
            if kind in ("normed", "after"):
                made["norm"] = nn.BatchNorm1d(width)
            elif kind == "nested":
                made |= {"inner": nn.ModuleDict({"up": nn.Linear(2 + n, 3), "down": nn.Linear(3, 2 + n)})}
            elif kind in ("gated", "two"):
                made["gate"] = nn.Linear(width, width)
            elif kind == "widening":
                made["shortcut"] = nn.Linear(width, out)
            self.stack.append(nn.ModuleDict(made))
            width = out
        self.head = nn.Linear(width, 3)

    def blocks(self) -> Iterator[str]:
        for i, (kind, _) in enumerate(self.kinds):
            if kind == "nested":
                yield f"stack.{i}.inner"
            if kind != "widening":
                yield f"stack.{i}"
            if kind == "two":
                yield f"stack.{i}.gate"

    def runs(self, name: str) -> bool:
        return name not in self.dropped

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for i, ((kind, _), m) in enumerate(zip(self.kinds, self.stack, strict=True)):
            x = self._step(kind, f"stack.{i}", m, x)
        return self.head(x)

    def _step(self, kind: str, name: str, m: Any, x: Tensor) -> Tensor:
        if kind == "widening":
            return m["shortcut"](x) + m["down"](F.relu(m["up"](x)))
        if self.runs(name):
            y = F.gelu(m["up"](m["norm"](x) if kind == "normed" else x))
            if kind == "nested" and self.runs(f"{name}.inner"):
                y = y + m["inner"]["down"](F.relu(m["inner"]["up"](y)))
            y = m["down"](y)
            if kind == "gated":
                y = y * torch.sigmoid(m["gate"](x))
            x = x - y if kind == "minus" else x + y
        if kind == "two" and self.runs(f"{name}.gate"):
            x = torch.tanh(m["gate"](x)) + x
        return F.relu(m["norm"](x)) if kind == "after" else x


@st.composite
def stacks(draw: st.DrawFn) -> Stack:
    kind = st.tuples(st.sampled_from(Stack.KINDS), st.integers(1, 4))
    with torch.random.fork_rng(devices=[]):
        return Stack(draw(st.lists(kind, min_size=1, max_size=4)))


def some_plan(graph: TracedGraph, seed: int) -> Plan:
    rng = np.random.default_rng(seed)
    kept = {}
    for axis in graph.axes:
        if axis.prunable and rng.random() < 0.6:
            count = int(rng.integers(1, axis.size + 1))
            kept[axis.id] = tuple(sorted(rng.choice(axis.size, count, replace=False).tolist()))
    return Plan(kept, graph.fingerprint, tuple(n for n in free(graph) if rng.random() < 0.5))


def gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    output = module(x)
    named = dict(module.named_parameters())
    weight = torch.linspace(0.5, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    found = torch.autograd.grad((output * weight).sum(), list(named.values()), allow_unused=True)
    return output.detach(), {n: g for n, g in zip(named, found, strict=True) if g is not None}


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(stacks(), st.integers(0, 999))
def test_random_stacks(tools: Any, model: Stack, seed: int) -> None:
    tools.randomise(model, seed)
    graph = graphs.trace(model, torch.randn(2, 5, generator=torch.Generator().manual_seed(seed)))
    assert sorted(free(graph)) == sorted(model.blocks())
    plan = Plan.from_json(json.loads(some_plan(graph, seed).dumps()))
    graphs.check(graph, plan)
    own = double(graph)
    for tensor in own.values():
        tensor.requires_grad_(tensor.is_floating_point())
    parameters = {n: nn.Parameter(own[n].detach()) for n, _ in model.named_parameters()}
    cut = graphs.cut(graph, plan, {**own, **parameters})
    dead = tools.zeroed(model, graph, plan)
    dead.dropped = frozenset(plan.blocks)
    x = torch.randn(4, 5, dtype=torch.double, generator=torch.Generator().manual_seed(seed + 1))
    (got, ours), (want, theirs) = gradients(cut.program.module, x), gradients(dead, x)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert ours.keys() == theirs.keys() == dict(cut.program.module.named_parameters()).keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, graphs.slice_tensor(theirs[name], cut.kept[name]), rtol=1e-8, atol=1e-8)
    widths = {axis: len(kept) for axis, kept in plan.kept.items()}
    assert graph.parameters(widths, plan.blocks) == sum(p.numel() for p in cut.program.module.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        cut.program.module(x[:1])
    assert graph.macs(widths, plan.blocks) == int(counter.get_total_flops()) // 2
    loaded = reloaded(cut.program.module)
    with torch.no_grad():
        assert torch.equal(loaded(x), got)


def reloaded(module: Any) -> Any:
    trainable = {n: p.requires_grad for n, p in module.named_parameters(remove_duplicate=False)}
    return graphs.load(json.loads(json.dumps(graphs.dump(module))), graphs.tensors_of(module), trainable)


# -- a broken rule is seen --------------------------------------------------------------------------------------------


def test_a_sum_that_is_replaced_by_its_branch_is_seen(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graphs.trace(tools.randomise(ResNet()), image())

    def wrong(new: Any, skips: dict[str, str], lost: Any) -> None:
        nodes = {n.name: n for n in new.nodes}
        for total, skip in skips.items():
            branch = next(n for n in nodes[total].all_input_nodes if n.name != skip)
            nodes[total].replace_all_uses_with(branch, delete_user_cb=lambda user: True)

    monkeypatch.setattr(surgery, "take_out", wrong)
    monkeypatch.setattr(blocks.Blocks, "gone_tensors", lambda self, names: frozenset())
    with pytest.raises(SurgeryError, match=r"dead-channel reference .* after dropping block 'layer1\.1'"):
        graphs.check(graph, Plan(blocks=("layer1.1",)))


def test_a_branch_that_is_not_silenced_in_the_reference_is_seen(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graphs.trace(tools.randomise(ResNet()), image())
    monkeypatch.setattr(reference, "dropped", lambda graph, plan: ())
    with pytest.raises(SurgeryError):
        graphs.check(graph, Plan(blocks=("layer1.1",)))


def test_without_the_look_at_readers_a_read_value_would_be_lost(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finder's reason is what stands between a hidden output and a network that lacks it."""
    monkeypatch.setattr(blocks, "dying", lambda skips: set(next(iter(skips)).graph.nodes) if skips else set())
    assert of(tools, read_outside).blocks[0].removable
    monkeypatch.undo()
    assert not of(tools, read_outside).blocks[0].removable
    assert depth.dying({}) == set()
