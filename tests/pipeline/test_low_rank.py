"""`pp.prune(..., ranks=...)`: by number, share and pattern; beside cuts and blocks; saved, replayed, trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paretoprune as pp
from paretoprune.graph import tensors_of
from paretoprune.pipeline import low_rank
from thin_networks import Small, batches, images, made

errors = pp.errors
ALL = ("conv1.weight", "conv2.weight", "block.0.up.weight", "block.0.down.weight", "fc1.weight", "fc2.weight")


@pytest.fixture
def small() -> nn.Module:
    return made()


@pytest.fixture(scope="module")
def traced() -> Any:
    """Captured once for what needs no surgery."""
    return pp.trace(made(), images())


def whole(model: nn.Module, pruned: pp.Pruned) -> nn.Module:
    """The network with the product of its factors in the place of every factorised weight."""
    full, state = copy.deepcopy(model).double(), tensors_of(pruned.model)
    for name in pruned.plan.ranks:
        layer = full.get_submodule(name.removesuffix(".weight"))
        first, second = (state[name.replace(".weight", f".{i}.weight")].detach().double() for i in (0, 1))
        if name in pruned.plan.spatial:
            weight = torch.einsum("orx,riy->oiyx", second[:, :, 0], first[:, :, :, 0])
        else:
            weight = (second.flatten(1) @ first.flatten(1)).reshape(layer.weight.shape)
        layer.weight.data = weight
        if layer.bias is not None:
            layer.bias.data = state[name.replace(".weight", ".1.bias")].detach().double()
    return full


@pytest.mark.parametrize("split", low_rank.SPLITS)
def test_it_computes_what_the_product_does(small: nn.Module, split: str) -> None:
    before, random = copy.deepcopy(small.state_dict()), torch.get_rng_state()
    pruned = pp.prune(small, images(), ranks=0.6, split=split)
    assert type(pruned.model) is Small
    assert set(pruned.plan.ranks) == set(ALL)
    assert pruned.plan.spatial == (("conv1.weight", "conv2.weight") if split == "space" else ())
    assert 0.5 * pruned.original_macs < pruned.macs <= 0.6 * pruned.original_macs
    graph = pp.trace(small, images())
    with torch.no_grad():
        for count in (1, 5):
            torch.testing.assert_close(
                pruned.model(images(count)).double(), whole(small, pruned)(images(count).double()), rtol=1e-4, atol=1e-5
            )
    counted = graph.parameters({}, (), pruned.plan.ranks, pruned.plan.spatial)
    assert counted == sum(p.numel() for p in pruned.model.parameters())
    assert pp.trace(pruned.model, images()).macs() == pruned.macs
    assert all(torch.equal(before[k], v) for k, v in small.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def planned(traced: Any, ranks: Any, split: str = "space", macs: float | None = None, data: Any = None) -> Any:
    """(plan, notes) as `pp.prune` makes them."""
    low_rank.check_ranks(ranks, split, macs)
    return low_rank.with_ranks(traced, pp.Plan(), ranks, split, macs, data)


def test_ranks_by_name_pattern_and_share(traced: Any) -> None:
    plan, told = planned(traced, {"fc1.weight": 3, "fc*": 2, "block.*": 0.5})
    assert plan.ranks == {"fc1.weight": 3, "fc2.weight": 2, "block.0.up.weight": 4, "block.0.down.weight": 4}
    assert not told
    plan, told = planned(traced, {"fc*": 5})
    assert plan.ranks == {"fc1.weight": 5}
    assert [n for n in told if n.startswith("not factorised: fc2.weight (rank 5 is not within 1 to 4")]


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"ranks": {"fc1.weight": 20}}, errors.PlanError, "rank 20 is not within 1 to 9, .*; give at most 9"),
        ({"ranks": {"norm.weight": 2}}, errors.UsageError, "ranks names 'norm.weight', which is no matrix"),
        ({"ranks": {"lstm*": 2}}, errors.UsageError, "ranks names 'lstm.*it has 'conv1.weight'"),
        ({"ranks": 0}, errors.UsageError, "ranks=0 for '.*': give a rank"),
        ({"ranks": 1.5}, errors.UsageError, "ranks=1.5 for '.*': give a rank"),
        ({"ranks": True}, errors.UsageError, "ranks=True for '.*': give a rank"),
        ({"ranks": float("nan")}, errors.UsageError, "give a rank"),
        ({"ranks": 1000}, errors.PlanError, "ranks=1000 factorises nothing; not factorised: "),
        ({"ranks": "all"}, errors.UsageError, "ranks='all': give a rank"),
        ({"ranks": "auto"}, errors.UsageError, "give macs= too"),
        ({"ranks": 2, "macs": 0.5}, errors.UsageError, "give ratio= beside ranks=2"),
        (
            {"ranks": "auto", "macs": 0.001},
            errors.PlanError,
            "macs=0.001 cannot be reached by ranks: 0.1 of the MACs are left at rank 1",
        ),
        ({"ranks": 2, "split": "time"}, errors.UsageError, "split='time': give 'space'"),
    ],
)
def test_what_cannot_be_read_or_done(traced: Any, options: dict[str, Any], error: type, why: str) -> None:
    with pytest.raises(error, match=why):
        planned(traced, **options)


def test_a_layer_that_goes_with_its_block(small: nn.Module) -> None:
    with pytest.raises(errors.PlanError, match="cannot factorise 'block.0.up.weight': it goes with a residual block"):
        pp.prune(small, images(), blocks=["block*"], ranks={"block.0.up.weight": 2})


@pytest.mark.parametrize("data", [pytest.param(False, marks=pytest.mark.slow), True])
def test_cut_first_then_factorised(small: nn.Module, data: bool, tmp_path: Path) -> None:
    """With positions and a block gone: what is left of a layer decides how large its rank may be."""
    calibration = batches() if data else None
    pruned = pp.prune(
        small, images(), ratio={"conv*": 0.5, "fc1": 0.25}, blocks=["block*"], ranks=0.5, calibration=calibration
    )
    graph = pp.trace(small, images())
    widths = {a: len(k) for a, k in pruned.plan.kept.items()}
    assert set(pruned.plan.ranks) == {"conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"}
    assert pruned.macs <= 0.5 * graph.macs(widths, pruned.plan.blocks)
    assert pp.trace(pruned.model, images()).macs() == pruned.macs
    assert pruned.kept["fc1.weight"][0].shape == (18,)
    replayed = pp.apply(small, images(), pruned.plan.to_json(), calibration=calibration)
    torch.testing.assert_close(replayed.model(images(3)), pruned.model(images(3)), rtol=0, atol=0)
    loaded = pp.load(pp.save(pruned, tmp_path / "net"), model=Small())
    assert type(loaded.model) is Small
    torch.testing.assert_close(loaded.model(images(3)), pruned.model(images(3)), rtol=0, atol=0)


def test_data_bring_the_outputs_nearer(small: nn.Module) -> None:
    """Layer by layer that is a theorem (tests/recover); of the whole network it holds here."""
    x = torch.cat(batches())
    with torch.no_grad():
        for options in ({"ranks": 0.4}, {"ranks": 0.4, "split": "channels"}):
            plain = pp.prune(small, images(), **options).model(x)
            aware = pp.prune(small, images(), calibration=batches(), **options).model(x)
            assert (aware - small(x)).square().mean() < (plain - small(x)).square().mean()


@pytest.mark.parametrize("data", [False, True])
def test_ranks_by_knapsack(traced: Any, data: bool) -> None:
    for split in low_rank.SPLITS:
        for share in (0.7, 0.4):
            plan, _ = planned(traced, "auto", split, share, batches() if data else None)
            macs = traced.macs({}, (), plan.ranks, plan.spatial)
            assert 0.8 * share * traced.macs() < macs <= share * traced.macs()
    assert planned(traced, "auto", "space", 1.0)[0].ranks == {}


def test_ranks_are_aligned_where_a_layer_has_room(traced: Any) -> None:
    for ranks, macs in ((0.6, None), ("auto", 0.5)):
        low_rank.check_ranks(ranks, "space", macs)
        plan, _ = low_rank.with_ranks(traced, pp.Plan(), ranks, "space", macs, None, 4)
        most = {w: traced.split(w, w in plan.spatial).largest for w in plan.ranks}
        assert all(r % 4 == 0 or (r < 4 and (most[w] < 4 or ranks == 0.6)) for w, r in plan.ranks.items())
        assert any(r % 4 == 0 for r in plan.ranks.values())
    with pytest.raises(errors.UsageError, match="align=0: give a whole number"):
        low_rank.with_ranks(traced, pp.Plan(), 0.6, "space", None, None, 0)


def test_the_knapsack_in_prune(small: nn.Module) -> None:
    pruned = pp.prune(small, images(), ranks="auto", macs=0.5)
    assert pruned.macs <= 0.5 * pruned.original_macs
    assert not pruned.plan.kept
    assert pp.trace(pruned.model, images()).macs() == pruned.macs
