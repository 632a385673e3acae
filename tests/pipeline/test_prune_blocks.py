"""`pp.prune(..., blocks=...)`: by name, in every strategy's order, with widths beside them; saved and replayed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paretoprune as pp
from paretoprune import criteria
from paretoprune.graph import tensors_of
from paretoprune.pipeline import depth

errors = pp.errors


class Residual(nn.Module):
    def __init__(self, width: int, hidden: int, out: int):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, out)
        self.shortcut = None if width == out else nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.relu(self.norm(self.up(x))))
        return (x if self.shortcut is None else self.shortcut(x)) + y


class Deep(nn.Module):
    """Five blocks that can go, between them one that widens; block 3 adds little, block 1 most."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.Sequential(*(Residual(8, 12, 8) for _ in range(3)))
        self.wide = Residual(8, 12, 10)
        self.last = nn.Sequential(*(Residual(10, 16, 10) for _ in range(2)))
        self.head = nn.Linear(10, 4)
        with torch.no_grad():
            for scale, block in zip((1.0, 4.0, 0.5, 0.05, 2.0), (*self.blocks, *self.last), strict=True):
                for layer in (block.up, block.down):
                    layer.weight.mul_(scale)
                    layer.bias.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.last(self.wide(self.blocks(F.relu(self.stem(x))))))
        return result


BLOCKS = ("blocks.0", "blocks.1", "blocks.2", "last.0", "last.1")


@pytest.fixture
def deep() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Deep().train()
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d)):
            norm.momentum = None
        model(given(256, 9))  # statistics as after training
        return model.eval()


def given(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def batches() -> list[Any]:
    labels = torch.randint(0, 4, (64,), generator=torch.Generator().manual_seed(2))
    return [(given(64, seed), labels) for seed in (3, 4)]


def by_hand(model: Any, dropped: tuple[str, ...], x: Tensor) -> Tensor:
    x = F.relu(model.stem(x))
    for name, block in (*model.named_modules(),):
        if isinstance(block, Residual) and name not in dropped:
            x = block(x)
    return model.head(x)


# -- by name ----------------------------------------------------------------------------------------------------------


def test_the_blocks_of_the_network(deep: nn.Module) -> None:
    graph = pp.trace(deep, given())
    assert [b.name for b in graph.blocks] == ["blocks.0", "blocks.1", "blocks.2", "wide", "last.0", "last.1"]
    assert [b.name for b in graph.blocks if b.removable] == list(BLOCKS)


@pytest.mark.parametrize("blocks", [["blocks.1"], ["last.*", "blocks.0"], ("*",)])
def test_named_blocks_alone(deep: nn.Module, blocks: Any) -> None:
    before = {n: t.clone() for n, t in tensors_of(deep).items()}
    pruned = pp.prune(deep, given(), blocks=blocks)
    assert pruned.plan.kept == {}
    assert set(pruned.plan.blocks) <= set(BLOCKS)
    torch.testing.assert_close(pruned.model(given(5)), by_hand(deep, pruned.plan.blocks, given(5)))
    assert type(pruned.model) is Deep
    for name in pruned.plan.blocks:
        assert isinstance(pruned.model.get_submodule(name), nn.Identity)
    gone = {n for n in before if n.startswith(tuple(f"{b}." for b in pruned.plan.blocks))}
    assert gone
    assert set(pruned.kept) == set(tensors_of(pruned.program.module)) == set(before) - gone
    graph = pp.trace(deep, given())
    assert pruned.macs == graph.macs({}, pruned.plan.blocks) < pruned.original_macs == graph.macs()
    assert all(torch.equal(t, before[n]) for n, t in tensors_of(deep).items())


def test_named_blocks_and_a_ratio(deep: nn.Module) -> None:
    pruned = pp.prune(deep, given(), ratio=0.5, blocks=["blocks.1", "last.0"])
    assert pruned.plan.blocks == ("blocks.1", "last.0")
    assert {a: len(k) for a, k in pruned.plan.kept.items()} == {
        "blocks.0.up": 6,
        "blocks.2.up": 6,
        "wide.up": 6,
        "last.1.up": 8,
    }
    pruned = pp.prune(deep, given(), ratio={"blocks.0.up": 0.5}, blocks=["last.1"])
    assert (list(pruned.plan.kept), pruned.plan.blocks) == (["blocks.0.up"], ("last.1",))


def test_a_plan_with_blocks_replays(deep: nn.Module) -> None:
    pruned = pp.prune(deep, given(), ratio=0.25, blocks=["blocks.1", "last.0"])
    plan = json.loads(pruned.plan.dumps())
    assert plan["blocks"] == ["blocks.1", "last.0"]
    again = pp.apply(deep, given(), plan)
    torch.testing.assert_close(again.model(given(3)), pruned.model(given(3)), rtol=0, atol=0)
    plan["blocks"] = ["last.*"]
    edited = pp.apply(deep, given(), plan)
    assert "blocks.1.up.weight" in edited.kept
    assert edited.macs == pp.trace(deep, given()).macs({a: len(k) for a, k in plan["kept"].items()}, ("last.*",))


def test_calibration_reconstructs_what_is_left(deep: nn.Module) -> None:
    pruned = pp.prune(deep, given(), ratio=0.5, blocks=["blocks.2"], calibration=batches())
    assert pruned.model(given(3)).isfinite().all()
    assert not any("blocks.2" in n for n in pruned.notes if "reconstructed" in n)
    plain = pp.apply(deep, given(), pruned.plan)
    x, want = given(64, 3), deep(given(64, 3))
    assert (pruned.model(x) - want).norm() < (plain.model(x) - want).norm()
    alone = pp.prune(deep, given(), blocks=["blocks.2"], calibration=batches())
    assert alone.model(given(3)).isfinite().all()


def test_a_network_without_blocks_trains(deep: nn.Module) -> None:
    model = pp.prune(deep, given(), ratio=0.5, blocks=["blocks.1"]).model.train()
    model(given(8)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# -- strategies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "share", "gone"),
    [
        ("deepest", 0.4, ("last.0", "last.1")),
        ("shallowest", 0.4, ("blocks.0", "blocks.1")),
        pytest.param("middle", 0.2, ("blocks.2",), marks=pytest.mark.slow),
        pytest.param("middle", 0.4, ("blocks.2", "last.0"), marks=pytest.mark.slow),
        ("middle", 0.6, ("blocks.1", "blocks.2", "last.0")),
        pytest.param("score", 0.2, ("last.0",), marks=pytest.mark.slow),
        pytest.param("score", 0.4, ("blocks.2", "last.0"), marks=pytest.mark.slow),
        ("score", 0.79, ("blocks.0", "blocks.2", "last.0")),
        ("deepest", 0.19, ()),
    ],
)
def test_a_strategy_takes_its_share(deep: nn.Module, strategy: str, share: float, gone: tuple[str, ...]) -> None:
    pruned = pp.prune(deep, given(), ratio={"blocks": share}, blocks=strategy)
    assert pruned.plan.blocks == gone
    assert pruned.plan.kept == {}
    both = pp.prune(deep, given(), ratio={"blocks": share, "*": 0.5}, blocks=strategy)
    assert both.plan.blocks == gone
    assert len(both.plan.kept) == 6 - len(gone)


def test_a_ratio_is_the_share_of_blocks_and_of_every_axis(deep: nn.Module) -> None:
    pruned = pp.prune(deep, given(), ratio=0.5, blocks="deepest")
    assert pruned.plan.blocks == ("last.0", "last.1")
    assert {a: len(k) for a, k in pruned.plan.kept.items()} == {f"{b}.up": 6 for b in (*BLOCKS[:3], "wide")}


def test_block_influence_orders_by_what_a_block_changes(deep: nn.Module) -> None:
    traced = pp.trace(deep, given())
    free = [b for b in traced.blocks if b.removable]
    scores = depth.block_scores(traced, free, criteria.criterion_of("magnitude"), batches())
    want = dict.fromkeys(BLOCKS, 0.0)
    hooks = []
    for name in BLOCKS:

        def seen(module: Any, args: Any, output: Tensor, name: str = name) -> None:
            want[name] += float(F.cosine_similarity(args[0].double(), output.double()).mean()) / 2

        hooks.append(deep.get_submodule(name).register_forward_hook(seen))
    with torch.no_grad():
        for x, _ in batches():
            deep(x)
    for hook in hooks:
        hook.remove()
    assert {n: pytest.approx(1 - w, abs=1e-6) for n, w in want.items()} == scores
    pruned = pp.prune(deep, given(), ratio={"blocks": 0.4}, blocks="score", calibration=batches())
    assert set(pruned.plan.blocks) == set(sorted(scores, key=scores.__getitem__)[:2])


def test_block_influence_of_a_sequence_is_taken_per_token() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.f, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            result: Tensor = self.head(x + self.f(torch.relu(x)))
            return result

    model, ids = Tokens().eval(), torch.randint(9, (4, 5))
    traced = pp.trace(model, ids)
    (block,) = traced.blocks
    found = depth.block_scores(traced, [block], criteria.criterion_of("magnitude"), [ids])
    with torch.no_grad():
        x = model.embed(ids).double()
        s = x + F.linear(x.relu(), model.f.weight.double(), model.f.bias.double())
    assert found == {"f": pytest.approx(1 - float(F.cosine_similarity(x, s, dim=-1).mean()), abs=1e-6)}


@pytest.mark.parametrize("strategy", depth.STRATEGIES)
@pytest.mark.parametrize("share", [*(pytest.param(s, marks=pytest.mark.slow) for s in (0.9, 0.3)), 0.6])
def test_macs_are_reached_by_blocks_first_and_widths_then(deep: nn.Module, strategy: str, share: float) -> None:
    graph = pp.trace(deep, given())
    pruned = pp.prune(deep, given(), macs=share, blocks=strategy)
    assert pruned.macs <= share * pruned.original_macs <= graph.macs({}, pruned.plan.blocks)
    free = [b for b in graph.blocks if b.removable]
    order = depth.in_order(graph, free, strategy, criteria.criterion_of("magnitude"), None)
    assert set(pruned.plan.blocks) == set(order[: len(pruned.plan.blocks)])
    if len(pruned.plan.blocks) < len(order):
        more = (*pruned.plan.blocks, order[len(pruned.plan.blocks)])
        assert graph.macs({}, more) < share * pruned.original_macs


def test_named_blocks_and_macs(deep: nn.Module) -> None:
    pruned = pp.prune(deep, given(), macs=0.5, blocks=["last.*"])
    assert pruned.plan.blocks == ("last.0", "last.1")
    assert pruned.macs <= 0.5 * pruned.original_macs
    with pytest.raises(errors.PlanError, match="macs=0.01 cannot be reached"):
        pp.prune(deep, given(), macs=0.01, blocks=["last.*"])


# -- on disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_saved_and_loaded(deep: nn.Module, tmp_path: Path, ratio: float | None) -> None:
    pruned = pp.prune(deep, given(), ratio=ratio, blocks=["blocks.1", "last.0"])
    loaded = pp.load(pp.save(pruned, tmp_path / "net"))
    assert loaded.plan == pruned.plan
    assert loaded.macs == pruned.macs
    assert loaded.kept.keys() == pruned.kept.keys()
    torch.testing.assert_close(loaded.model(given(3)), pruned.model(given(3)), rtol=0, atol=0)
    own = pp.load(tmp_path / "net", model=Deep())
    assert type(own.model) is Deep
    assert tensors_of(own.model).keys() == tensors_of(pruned.model).keys()
    torch.testing.assert_close(own.model(given(3)), pruned.model(given(3)), rtol=0, atol=0)


# -- the user's own class --------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Two blocks in one module; `late` drops out behind the second."""

    def __init__(self, late: float = 0.0) -> None:
        super().__init__()
        self.first, self.second, self.drop = nn.Linear(6, 6), nn.Linear(6, 6), nn.Dropout(late) if late else None

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = x + self.first(torch.relu(x))
        x = x + scale * self.second(torch.tanh(x))
        return x if self.drop is None else self.drop(x)


class Rows(nn.Module):
    def __init__(self, keyword: bool = False, late: float = 0.0) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(Layer(late) for _ in range(3)), nn.Linear(6, 3)
        self.options = {"scale": 0.5} if keyword else {}

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, **self.options)
        result: Tensor = self.head(x)
        return result


def test_a_layer_that_lost_all_its_blocks_passes_its_value_on() -> None:
    model = Rows().eval()
    pruned = pp.prune(model, given(), blocks=["layers.1.*"])
    assert type(pruned.model) is Rows
    assert isinstance(pruned.model.layers[1], nn.Identity)
    x = given(4)
    torch.testing.assert_close(pruned.model(x), model.head(model.layers[2](model.layers[0](x))))
    assert isinstance(model.layers[1], Layer)


@pytest.mark.parametrize(
    ("model", "blocks", "why"),
    [
        (Rows(), ["layers.1.first"], "block 'layers.1.first' is no layer of its own in a row"),
        (Rows(keyword=True), ["layers.1.*"], "nn.Identity in the place of 'layers.1' does not do: its forward fails"),
        (Rows(late=0.5), ["layers.1.*"], "'layers.1' without its block still does something in training"),
    ],
)
def test_where_the_class_cannot_lose_a_block_the_result_is_the_graph(model: Rows, blocks: list[str], why: str) -> None:
    pruned = pp.prune(model.eval(), given(), blocks=blocks)
    assert type(pruned.model).__name__ == "PrunedGraph"
    assert any(why in note for note in pruned.notes), pruned.notes


def test_a_language_model_without_a_layer_is_the_graph_and_cannot_generate() -> None:
    pytest.importorskip("transformers")
    from zoo.networks import NETWORKS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, example = NETWORKS["transformers/llama"].build()
        pruned = pp.prune(model, example, ratio=0.5, blocks=["model.layers.0.*"])
        assert pruned.model(**example)[0].isfinite().all()
    assert pruned.plan.blocks == ("model.layers.0.self_attn", "model.layers.0.mlp")
    assert not [n for n in pruned.kept if n.startswith("model.layers.0.")]
    with pytest.raises(errors.ModelError, match="it generates with a cache that counts its layers"):
        pruned.model.generate()


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"blocks": "deep", "ratio": 0.5}, "UsageError", r"blocks='deep': give one of 'deepest', .* \['deep'\]"),
        ({"blocks": 3}, "UsageError", "blocks=3: give a strategy, or a list"),
        ({"blocks": [3]}, "UsageError", "every entry is the name of a block"),
        ({"blocks": "deepest"}, "UsageError", "blocks='deepest' alone does not say how many"),
        ({}, "UsageError", "give either ratio="),
        ({"blocks": ["a"], "ratio": 0.5, "macs": 0.5}, "UsageError", "give either ratio="),
        ({"blocks": "score", "ratio": {"*": 0.5}}, "UsageError", "add the share of blocks"),
        ({"blocks": "score", "ratio": {"blocks": 1.5}}, "UsageError", "ratio=1.5 for 'blocks': give the share"),
        ({"blocks": "deepest", "macs": 2.0}, "UsageError", "macs=2.0: give the share of the MACs"),
        ({"blocks": ["blocks.7"]}, "PlanError", r"there is no block 'blocks\.7': .*'blocks\.0', 'blocks\.1'"),
        ({"blocks": ["wide"]}, "PlanError", r"cannot remove block 'wide' \('wide': it changes the shape"),
        ({"blocks": "score", "ratio": 0.5, "criterion": "taylor"}, "DataError", "criterion 'taylor' needs gradients"),
    ],
)
def test_what_cannot_be_done_says_what_to_do(
    deep: nn.Module, options: dict[str, Any], error: str, message: str
) -> None:
    with pytest.raises(getattr(errors, error), match=message):
        pp.prune(deep, given(), **options)


def test_a_network_without_residual_blocks(net: nn.Module, example: Tensor) -> None:
    with pytest.raises(errors.PlanError, match="blocks='deepest': this network has no residual block that can go"):
        pp.prune(net, example, ratio=0.5, blocks="deepest")
