"""Two thin layers in the place of one: random networks, exact counts, what is refused, and a proof that can fail."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from paretoprune import graph as graphs
from paretoprune import recover
from paretoprune.core.errors import FileError, PlanError, SurgeryError
from paretoprune.core.plan import Plan
from paretoprune.graph import Cut, TracedGraph, thin, thin_check


class Stack(nn.Module):
    """Convolutions of all kinds in a row, then linear layers."""

    def __init__(self, kinds: list[tuple[Any, ...]]):
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for out, kernel, stride, padding, dilation, bias, norm in kinds:
            pads = padding if stride == 1 and kernel != 2 else 2
            layers.append(nn.Conv2d(width, out, kernel, stride, pads, dilation, bias=bias))
            layers += [nn.BatchNorm2d(out)] if norm else []
            layers.append(nn.Tanh())
            width = out
        self.features = nn.Sequential(*layers)
        self.fc1, self.fc2 = nn.Linear(width, 9), nn.Linear(9, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.relu(self.fc1(self.features(x).mean((2, 3)))))
        return result


kinds = st.tuples(
    st.integers(4, 9),
    st.sampled_from([1, 3, (3, 1), (5, 3), 2]),
    st.sampled_from([1, 2, (1, 2)]),
    st.sampled_from([2, "same"]),
    st.sampled_from([1, (1, 2)]),
    st.booleans(),
    st.booleans(),
)
stacks = st.lists(kinds, min_size=1, max_size=3)
few = settings(max_examples=4, suppress_health_check=list(HealthCheck), deadline=None)


def image(size: int = 9) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def carried_out(
    graph: TracedGraph, plan: Plan, ranks: dict[str, int] | None = None
) -> tuple[Cut, Cut, list[graphs.ThinNames]]:
    """(cut, factorised, names); `ranks` in place of the plan's, which may not be larger than what saves work."""
    cut = graphs.cut(graph, plan)
    ranks = dict(plan.ranks) if ranks is None else ranks
    names = [graphs.names_of(cut, c, c.weight in plan.spatial) for c in cut.program.contractions if c.weight in ranks]
    found = recover.factorise_program(cut.program, ranks, {}, spatial=plan.spatial)
    return cut, graphs.thinned(graph, cut, {w: (f.first, f.second) for w, f in found.items()}, names), names


def splits(graph: TracedGraph, widths: dict[str, int]) -> dict[str, tuple[bool, graphs.Split]]:
    """Weights that can be factorised; every other one whose kernel can be divided is so."""
    found = {}
    for i, (weight, layer) in enumerate(graph.low_rank.layers.items()):
        spatial = layer.spatial and i % 2 == 0
        found[weight] = spatial, graph.split(weight, spatial, widths)
    return found


def measured_macs(module: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x[:1])
    return int(counter.get_total_flops()) // 2


@few
@given(stacks, st.integers(0, 99), st.booleans())
def test_counts_are_those_of_the_result(tools: Any, kinds: list[Any], seed: int, cuts: bool) -> None:
    """MACs by torch's counter, parameters by looking, layers by capturing the result."""
    model, x = tools.randomise(Stack(kinds), seed), image()
    before = copy.deepcopy(model.state_dict())
    graph = graphs.trace(model, x)
    kept = {a.id: tuple(range(0, a.size, 2)) for a in graph.axes if a.prunable and cuts}
    widths = {a: len(k) for a, k in kept.items()}
    usable = {w: (s, p) for w, (s, p) in splits(graph, widths).items() if p.largest}
    ranks = {w: 1 + seed % p.largest for w, (_, p) in usable.items()}
    plan = Plan(kept, graph.fingerprint, ranks=ranks, spatial=tuple(sorted(w for w, (s, _) in usable.items() if s)))
    assert Plan.from_json(json.loads(plan.dumps())) == plan
    cut, made, names = carried_out(graph, plan)
    graphs.check_thin(graph, cut, made, names)
    module = made.program.module
    assert graph.macs(widths, (), ranks, plan.spatial) == measured_macs(module, x)
    assert graph.parameters(widths, (), ranks, plan.spatial) == sum(p.numel() for p in module.parameters())
    assert graph.layers(widths, (), ranks, plan.spatial) == graphs.trace(module, x).layers()
    assert graph.macs(widths, (), ranks, plan.spatial) < graph.macs(widths) or not ranks
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    trained = {n: p.requires_grad for n, p in module.named_parameters()}
    loaded = graphs.load(json.loads(json.dumps(graphs.dump(module))), graphs.tensors_of(module), trained)
    torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)


@few
@given(stacks, st.integers(0, 99))
def test_full_rank_changes_nothing(tools: Any, kinds: list[Any], seed: int) -> None:
    model, x = tools.randomise(Stack(kinds), seed), image()
    graph = graphs.trace(model, x)
    found = splits(graph, {})
    plan = Plan(spatial=tuple(sorted(w for w, (spatial, _) in found.items() if spatial)))
    cut, made, names = carried_out(graph, plan, {w: min(p.sides) for w, (_, p) in found.items()})
    with torch.no_grad():
        torch.testing.assert_close(made.program.module(x), model(x), rtol=1e-4, atol=1e-4)
    graphs.check_thin(graph, cut, made, names)


def test_the_largest_rank_is_the_last_that_saves(tools: Any) -> None:
    graph = graphs.trace(tools.randomise(Stack([(8, 3, 2, 2, 1, True, True)] * 2)), image())
    for weight, layer in graph.low_rank.layers.items():
        for spatial in {False, layer.spatial}:
            chosen = (weight,) if spatial else ()
            most = graph.split(weight, spatial).largest
            assert graph.macs({}, (), {weight: most}, chosen) < graph.macs()
            with pytest.raises(PlanError, match=f"rank {most + 1} is not within 1 to {most}.*; give at most {most}"):
                graph.macs({}, (), {weight: most + 1}, chosen)
    with pytest.raises(PlanError, match="cannot factorise 'fc1.weight': rank 0 is not within 1 to 4 "):
        graph.parameters({}, (), {"fc1.weight": 0})
    with pytest.raises(PlanError, match="cannot factorise 'fc1.weight': it has no kernel of two dimensions to divide"):
        graph.parameters({}, (), {"fc1.weight": 2}, ["fc1.weight"])


def test_rows_that_are_cut_count(tools: Any) -> None:
    """A layer over the heads of what another one makes: fewer heads are fewer rows."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.b(m.a(x).view(-1, 4, 6).relu()).sum(1)

    graph = graphs.trace(
        tools.randomise(tools.Net(forward, a=nn.Linear(5, 24), b=nn.Linear(6, 8, bias=False))), torch.randn(2, 5)
    )
    heads = next(a for a in graph.axes if a.prunable and a.size == 4)
    plan = Plan({heads.id: (0, 2, 3)}, ranks={"b.weight": 2})
    cut, made, names = carried_out(graph, plan)
    graphs.check_thin(graph, cut, made, names)
    assert graph.macs({heads.id: 3}, (), plan.ranks) == measured_macs(made.program.module, torch.randn(2, 5))


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.grouped = nn.Conv1d(6, 6, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose1d(6, 6, 1)
        self.one = nn.Linear(6, 1)
        self.twice = nn.Linear(6, 6)
        self.tied, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.tied.weight
        self.scaled = nn.Parameter(torch.randn(6, 6))
        self.idle = nn.Parameter(torch.randn(6, 6))
        self.unrolled = nn.LSTM(6, 6, batch_first=True)
        self.last = nn.Linear(6, 6)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = self.up(self.grouped(x.transpose(1, 2))).transpose(1, 2)
        x = self.twice(self.twice(x).relu()) + self.one(x)
        x = self.unrolled(self.other(self.tied(x).relu()))[0]
        result: Tensor = self.last(F.linear(x, self.scaled * 2))
        return result


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        ("embed.weight", "aten.embedding.default reads it, which is no linear layer or convolution"),
        ("grouped.weight", "its convolution has 2 groups"),
        ("up.weight", "its convolution is transposed"),
        ("one.weight", "two layers in its place would never take fewer multiply-accumulates"),
        ("twice.weight", "2 operators share it"),
        ("tied.weight", "it is tied to 'other.weight'"),
        ("scaled", "aten.mul.Tensor reads it, which is no linear layer or convolution"),
        ("idle", "no operator reads it"),
        ("unrolled.weight_ih_l0", "aten.lstm.input reads it, which is no linear layer or convolution"),
        ("nowhere.weight", "this network has no such matrix; it has 'one.weight', 'last.weight'"),
    ],
)
def test_what_is_refused(tools: Any, weight: str, why: str) -> None:
    graph = graphs.trace(tools.randomise(Odd()), torch.randint(7, (2, 5)))
    with pytest.raises(PlanError, match=f"cannot factorise '{weight}': .*{why}"):
        graph.checked_ranks({weight: 1})


def test_a_raw_parameter_and_a_shared_bias_keep_to_the_graph(tools: Any) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.b(F.linear(m.a(x), m.raw).relu())

    a, b = nn.Linear(6, 6), nn.Linear(6, 6)
    b.bias = a.bias
    model = tools.randomise(tools.Net(forward, a=a, b=b, raw=nn.Parameter(torch.randn(6, 6))))
    graph = graphs.trace(model, torch.randn(2, 6))
    cut, made, names = carried_out(graph, Plan(ranks={"a.weight": 2, "b.weight": 2, "raw": 2}))
    graphs.check_thin(graph, cut, made, names)
    state = graphs.tensors_of(made.program.module)
    assert state.keys() == {f"{n}.{i}.weight" for n in "ab" for i in (0, 1)} | {"raw_0", "raw_1", "a.bias", "b.bias"}
    assert state["a.bias"] is state["b.bias"]
    whole = graphs.rebuilt(model, graph, cut)
    assert (
        "'raw' was factorised and is not the weight of a layer"
        in graphs.rebuilt_thin(whole, made, names, graph.example).why
    )


def test_the_proof_fails_where_something_is_wrong(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graphs.trace(tools.randomise(Stack([(8, 3, 2, 2, 1, True, True)])), image())
    plan = Plan(ranks={"features.0.weight": 3}, spatial=("features.0.weight",))
    graphs.check_thin(graph, *carried_out(graph, plan))

    def turned(first: Tensor, second: Tensor) -> Tensor:
        return thin.product(first, second).flip(-1)

    with monkeypatch.context() as patch:
        patch.setattr(thin_check, "product", turned)
        with pytest.raises(SurgeryError, match="in the place of 'features.0.weight' differs from the one with their"):
            graphs.check_thin(graph, *carried_out(graph, plan))
    monkeypatch.setattr(thin, "bind", lambda node: {**thin_bind(node), "bias": None})
    with pytest.raises(SurgeryError, match="leave these out of ranks="):
        graphs.check_thin(graph, *carried_out(graph, plan))


thin_bind = thin.bind


def test_a_plan_with_ranks_as_json() -> None:
    plan = Plan({"a": (0,)}, "abc", ("b",), {"w": 3, "v": 2}, ("w",))
    data = json.loads(plan.dumps())
    assert (data["ranks"], data["spatial"]) == ({"v": 2, "w": 3}, ["w"])
    assert Plan.from_json(data) == plan
    assert Plan.from_json({"schema": 2, "kept": {}, "blocks": ["b"]}) == Plan(blocks=("b",))
    for wrong in ([1], {"w": "3"}, {"w": True}, {"w": 1.5}, None):
        with pytest.raises(PlanError, match="'ranks' is .*; it must be an object of weight name to rank"):
            Plan.from_json({**data, "ranks": wrong, "spatial": []})
    with pytest.raises(PlanError, match="'spatial' is .*; it must be a list of weights that 'ranks' names"):
        Plan.from_json({**data, "spatial": ["x"]})


def test_thin_layers_take_the_place_of_torchs_own_only() -> None:
    tensors = {"0.0.weight": torch.ones(2, 6), "0.1.weight": torch.ones(6, 2), "0.1.bias": torch.ones(6)}
    model = nn.Sequential(nn.Linear(6, 6))
    graphs.put_thin(model, ["0"], tensors)
    assert model(torch.ones(1, 6)).tolist() == [[13.0] * 6]
    assert (model[0][0].out_features, model[0][1].in_features) == (2, 2)
    for module, path, why in (
        (nn.Sequential(nn.Linear(6, 6)), "1", "Sequential has no layer '1'"),
        (nn.Sequential(nn.Linear(6, 6)), "", "Sequential has no layer ''"),
        (nn.Sequential(nn.ReLU()), "0", "'0' is a ReLU, in whose place nn.Sequential may not stand"),
        (nn.Sequential(nn.Conv1d(6, 6, 1, groups=2)), "0", "'0' is a convolution with groups"),
    ):
        with pytest.raises(FileError, match=why):
            graphs.put_thin(module, [path], tensors)
    with pytest.raises(FileError, match=r"'0.1.bias' is not there"):
        graphs.put_thin(nn.Sequential(nn.Linear(6, 6)), ["0"], {k: v for k, v in tensors.items() if "bias" not in k})
