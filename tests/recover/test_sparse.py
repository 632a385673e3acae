"""Hooks of sparse training, driven by a loop of the test's own, on one network per kind of axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import cycle, islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import paretoprune as pp
from paretoprune.core.axis import INNER_KINDS, Axis, AxisMember
from paretoprune.core.errors import ModelError, UsageError
from paretoprune.core.protocols import TrainingHook
from paretoprune.graph import TracedGraph, cut, tensors_of
from paretoprune.recover.sparse import (
    SCHEDULES,
    Gated,
    GroupLasso,
    Groups,
    GrowingRegularisation,
    Held,
    L0Gates,
    Settling,
    SoftPruning,
    SparseMethod,
    schedule_of,
)
from small_networks import MAKERS, batches, network

Optimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@cache
def traced(name: str) -> TracedGraph:
    return pp.trace(*network(name))


def inner_axes(name: str) -> tuple[Axis, ...]:
    return tuple(a for a in traced(name).axes if a.prunable and a.kind in INNER_KINDS)


def without(module: nn.Module, name: str, removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """`module` with these positions really taken out."""
    sizes = {a.id: a.size for a in traced(name).axes}
    kept = {a: tuple(p for p in range(sizes[a]) if p not in gone) for a, gone in removed.items()}
    return cut(traced(name), pp.Plan(kept), tensors_of(module)).program.module.eval()


def halves(axes: Sequence[Axis]) -> dict[str, int]:
    return {axis.id: axis.size // 2 for axis in axes}


def run(
    module: nn.Module, name: str, hooks: Sequence[TrainingHook], steps: int = 12, optimizer: str = "momentum"
) -> None:
    """A training loop that knows nothing but the protocol."""
    torch.manual_seed(3)
    step_of = OPTIMIZERS[optimizer](module.parameters())
    module.train()
    for step, (x, y) in enumerate(islice(cycle(batches(name)), steps)):
        loss = functional.cross_entropy(module(x), y)
        for hook in hooks:
            penalty = hook.penalty(step, steps)
            loss = loss if penalty is None else loss + penalty
        step_of.zero_grad()
        loss.backward()
        step_of.step()
        for hook in hooks:
            hook.after_step(step, steps)
    module.eval()


def methods(module: nn.Module, groups: Groups, counts: dict[str, int]) -> dict[str, tuple[nn.Module, SparseMethod]]:
    gated = Gated(module, groups)
    return {
        "group_lasso": (module, GroupLasso(groups, counts=counts)),
        "greg": (module, GrowingRegularisation(groups, counts)),
        "l0": (gated, L0Gates(gated, counts)),
        "sfp": (module, SoftPruning(groups, counts, cycles=4)),
    }


METHODS = ("group_lasso", "greg", "l0", "sfp")


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("method", METHODS)
def test_what_settled_can_be_pruned_without_changing_the_output(method: str, name: str) -> None:
    """For channels, heads, recurrent units and units of a feed-forward network, with momentum and weight decay."""
    module, example = network(name)
    axes, groups = inner_axes(name), Groups(module, inner_axes(name))
    trained, hook = methods(module, groups, halves(axes))[method]
    settling = Settling(hook, groups, halves(axes))
    run(trained, name, [settling])
    if isinstance(trained, Gated):
        trained.fold_()
    assert {axis: len(gone) for axis, gone in settling.removed.items()} == halves(axes)
    with torch.no_grad():
        smaller, output = without(module, name, settling.removed)(example), module(example)
    assert float(output.std()) > 1e-3
    torch.testing.assert_close(smaller, output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["convolutions", "recurrent"])
def test_a_mask_holds_against_any_optimizer(name: str, optimizer: str) -> None:
    module, _ = network(name)
    groups = Groups(module, inner_axes(name))
    before = {axis: groups.norms(axis, "all") for axis in groups.axes}
    held = Held(groups, dict.fromkeys(groups.axes, (0, 2)))
    run(module, name, [held], 6, optimizer)
    for axis in groups.axes:
        norms = groups.norms(axis, "all")
        assert norms[[0, 2]].tolist() == [0, 0]
        assert bool((norms[[1, 3]] > 0.3 * before[axis][[1, 3]]).all())


def test_group_lasso_drives_groups_to_zero_and_training_alone_does_not() -> None:
    zeros = {}
    for strength in (0.0, 1.5):
        module, _ = network("plain")
        groups = Groups(module, inner_axes("plain"))
        run(module, "plain", [GroupLasso(groups, strength)] if strength else [], 60)
        zeros[strength] = int((groups.norms("first") == 0).sum())
    assert zeros[0.0] == 0
    assert zeros[1.5] >= 6


def test_group_lasso_is_the_proximal_step() -> None:
    """Directions stay, lengths lose τ; a group shorter than τ vanishes."""
    module, _ = network("plain")
    groups = Groups(module, inner_axes("plain"))
    with torch.no_grad():
        module.first.weight[1] *= 1e-3
        module.first.bias[1] *= 1e-3
    before, norms = module.first.weight.detach().clone(), groups.norms("first")
    GroupLasso(groups, 0.5).after_step(0, 10)
    expected = (norms - 0.05 * norms.mean() * (norms.mean() / norms) ** 2).clamp_min(0)
    torch.testing.assert_close(groups.norms("first"), expected, rtol=1e-5, atol=1e-7)
    assert expected[1] == 0
    assert float(functional.cosine_similarity(before[0], module.first.weight[0].detach(), dim=0)) > 1 - 1e-6


def test_group_lasso_rests_once_enough_is_gone() -> None:
    module, _ = network("plain")
    groups = Groups(module, inner_axes("plain"))
    groups.zero_("first", [0, 1, 2], "makers")
    before = groups.norms("first")
    GroupLasso(groups, 1.0, {"first": 3}).after_step(0, 10)
    assert torch.equal(groups.norms("first"), before)
    GroupLasso(groups, 1.0, {"first": 4}).after_step(0, 10)
    assert float(groups.norms("first").sum()) < float(before.sum())


def test_few_steps_do_not_take_what_is_to_stay() -> None:
    module, _ = network("plain")
    groups = Groups(module, inner_axes("plain"))
    start = groups.norms("first")
    GroupLasso(groups, 10.0, {"first": 4}).after_step(0, 1)
    norms = groups.norms("first")
    assert int((norms == 0).sum()) == 4
    assert bool((norms[norms > 0] >= 0.499 * start[norms > 0]).all())


def test_growing_regularisation_presses_the_chosen_harder_and_harder_and_leaves_the_others() -> None:
    module, _ = network("plain")
    groups = Groups(module, inner_axes("plain"))
    start = groups.norms("first")
    hook = GrowingRegularisation(groups, {"first": 4}, strength=10.0)
    chosen = torch.argsort(start)[:4]
    shrunk = []
    for step in range(5):
        before = groups.norms("first")
        hook.after_step(step, 5)
        shrunk.append(float(groups.norms("first")[chosen[0]] / before[chosen[0]]))
    assert shrunk == sorted(shrunk, reverse=True)
    norms = groups.norms("first")
    torch.testing.assert_close(norms[chosen], start[chosen] * np.exp(-10.0), rtol=1e-4, atol=0)
    others = [p for p in range(12) if p not in chosen.tolist()]
    assert torch.equal(norms[others], start[others])


def test_the_chosen_go_even_if_the_loss_defends_them() -> None:
    module, _ = network("plain")
    groups = Groups(module, inner_axes("plain"))
    hook = GrowingRegularisation(groups, {"first": 4})
    groups.scale_("first", torch.tensor([100.0 if p in hook.chosen["first"] else 1.0 for p in range(12)]))
    assert sorted(torch.argsort(hook.scores()["first"])[:4].tolist()) == hook.chosen["first"]


def test_softly_pruned_positions_come_back() -> None:
    """Zeroed readers train on: after a step they are no longer zero, and the choice of the next cycle is free."""
    module, _ = network("plain")
    groups = Groups(module, inner_axes("plain"))
    hook = SoftPruning(groups, {"first": 6}, cycles=1, schedule="constant")
    hook.after_step(0, 1)
    zeroed = hook.zeroed["first"]
    assert len(zeroed) == 6
    assert groups.norms("first", "readers")[zeroed].tolist() == [0] * 6
    assert bool((groups.norms("first", "makers") > 0).all())
    run(module, "plain", [], 3)
    assert int((groups.norms("first", "readers")[zeroed] > 0).sum()) >= 4
    groups.scale_("first", torch.tensor([1e4 if p == zeroed[0] else 1.0 for p in range(12)]))
    hook.after_step(0, 1)
    assert zeroed[0] not in hook.zeroed["first"]


def test_soft_pruning_follows_its_schedule() -> None:
    module, _ = network("plain")
    groups = Groups(module, inner_axes("plain"))
    hook, seen = SoftPruning(groups, {"first": 8}, cycles=4, schedule="linear"), []
    for step in range(10):
        hook.after_step(step, 10)
        seen.append(len(hook.zeroed.get("first", [])))
    assert seen == [0, 0, 2, 2, 4, 4, 4, 6, 6, 8]


@pytest.mark.parametrize("name", MAKERS)
def test_folded_gates_are_the_gated_network_in_eval_mode(name: str) -> None:
    module, example = network(name)
    gated = Gated(module, Groups(module, inner_axes(name))).eval()
    torch.testing.assert_close(gated(example), module(example))  # open gates change nothing
    torch.manual_seed(0)
    with torch.no_grad():
        for value in gated.log_alpha.values():
            value.copy_(2 * torch.randn_like(value))
    shut = {axis: gates == 0 for axis, gates in gated.gates().items()}
    assert any(bool(s.any()) for s in shut.values())
    expected = gated(example).detach()
    assert float((expected - module(example)).detach().abs().max()) > 1e-3
    plain = gated.fold_()
    assert plain is module
    torch.testing.assert_close(plain(example), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gated(example), expected, rtol=1e-5, atol=1e-6)


def test_gates_are_drawn_in_training_mode_and_carry_gradients() -> None:
    module, example = network("recurrent")
    gated = Gated(module, Groups(module, inner_axes("recurrent"))).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for value in gated.log_alpha.values():
            value.zero_()
    assert not torch.equal(gated(example), gated(example))
    gated(example).square().sum().backward()
    assert all(v.grad is not None and float(v.grad.abs().sum()) > 0 for v in gated.log_alpha.values())
    assert {n for n, _ in gated.named_parameters()} == {f"module.{n}" for n, _ in module.named_parameters()}


def test_the_price_of_gates_brings_their_share_down() -> None:
    module, _ = network("plain")
    groups = Groups(module, inner_axes("plain"))
    gated = Gated(module, groups)
    hook = L0Gates(gated, {"first": 6}, strength=4.0)
    run(gated, "plain", [hook], 120)
    assert float(hook.scores()["first"].mean()) == pytest.approx(0.5, abs=0.15)
    free, _ = network("plain")
    left = Gated(free, Groups(free, inner_axes("plain")))
    unpriced = L0Gates(left, {})
    run(left, "plain", [unpriced], 120)
    assert float(unpriced.scores()["first"].mean()) > 0.75


@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0, 1), st.floats(0, 1))
def test_schedules_end_at_one_and_never_fall(name: str, a: float, b: float) -> None:
    schedule = schedule_of(name)
    assert schedule(1.0) == 1
    assert schedule(min(a, b)) <= schedule(max(a, b)) + 1e-12
    assert name == "constant" or schedule(0.0) == 0


@given(st.floats(0, 1))
def test_the_cubic_schedule_is_zhu_and_guptas(t: float) -> None:
    final = 0.7
    assert final * schedule_of("cubic")(t) == pytest.approx(final + (0 - final) * (1 - t) ** 3, abs=1e-12)


@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 2**16))
def test_norms_and_scaling_are_those_of_the_axis_members(positions: int, repeats: int, seed: int) -> None:
    """Against AxisMember.view, with entries in any order, along any dim."""
    rng = np.random.default_rng(seed)
    dim = int(rng.integers(0, 2))
    entries = rng.permutation(positions * repeats + 1)[: positions * repeats].reshape(positions, repeats)
    shape = [3, 3]
    shape[dim] = positions * repeats + 1
    module = nn.Module()
    module.weight = nn.Parameter(torch.from_numpy(rng.standard_normal(shape)))
    member = AxisMember("weight", dim, "out", entries)
    groups = Groups(module, [Axis("a", positions, True, "", "channel", (member,))])
    before = member.view(module.weight)
    torch.testing.assert_close(groups.norms("a"), before.norm(dim=1))
    factors = torch.from_numpy(rng.uniform(0, 2, positions))
    whole = float(module.weight.detach().square().sum() - before.square().sum())
    groups.scale_("a", factors)
    after = member.view(module.weight)
    torch.testing.assert_close(after, before * factors[:, None])
    assert float(module.weight.detach().square().sum() - after.square().sum()) == pytest.approx(whole)
    groups.zero_("a", [0])
    assert groups.norms("a")[0] == 0
    torch.testing.assert_close(groups.norms("a")[1:], (before * factors[:, None]).norm(dim=1)[1:])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [3, 10])
def test_a_state_goes_on_where_it_was(method: str, stop: int) -> None:
    """Before and after the choice: a fresh hook with the state does what the first one would have done."""
    states: list[dict[str, Any]] = []
    results = []
    for resumed in (False, True):
        module, _ = network("plain")
        groups = Groups(module, inner_axes("plain"))
        trained, method_ = methods(module, groups, {"first": 5})[method]
        hook = Settling(method_, groups, {"first": 5})
        if resumed:
            with torch.no_grad():
                for name, p in module.named_parameters():
                    p.copy_(states[0][name])
            hook.load_state_dict(states[1])
        _steps(trained, hook, range(stop if resumed else 0, 12), states, stop)
        results.append((hook.removed, {n: p.detach().clone() for n, p in module.named_parameters()}))
    assert all(isinstance(v, (Tensor, float, int, str)) for v in states[1].values())
    assert results[0][0] == results[1][0]
    for name, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], value)


def _steps(module: nn.Module, hook: Settling, steps: range, states: list[dict[str, Any]], stop: int) -> None:
    """Plain gradient steps, which have no state of their own; the state is noted once, before step `stop`."""
    data = batches("plain")
    for step in steps:
        if step == stop and not states:
            inner = module.module if isinstance(module, Gated) else module
            states += [{n: p.detach().clone() for n, p in inner.named_parameters()}, hook.state_dict()]
        torch.manual_seed(step)
        module.train()
        x, y = data[step % len(data)]
        loss = functional.cross_entropy(module(x), y)
        penalty = hook.penalty(step, 12)
        parameters = list(module.parameters())
        (loss if penalty is None else loss + penalty).backward()
        with torch.no_grad():
            for p in parameters:
                p -= 0.05 * p.grad
                p.grad = None
        hook.after_step(step, 12)


def test_errors_say_what_is_wrong() -> None:
    module, _ = network("plain")
    axes = inner_axes("plain")
    groups = Groups(module, axes)
    with pytest.raises(UsageError, match="no axis was given"):
        Groups(module, [])
    with pytest.raises(ModelError, match=r"'first\.weight', which is no parameter of the module"):
        Groups(nn.Linear(2, 2), axes)
    for strength in (0, -1, float("nan"), float("inf"), True, "1"):
        with pytest.raises(UsageError, match="strength="):
            GroupLasso(groups, strength)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cycles=0"):
        SoftPruning(groups, {}, cycles=0)
    with pytest.raises(UsageError, match="unknown schedule 'cubik'.*did you mean 'cubic'"):
        schedule_of("cubik")
    with pytest.raises(UsageError, match="it must give 0 to 1"):
        schedule_of(lambda t: 2 * t)(1.0)
    with pytest.raises(UsageError, match="no gates on axis 'nothing'"):
        L0Gates(Gated(module, groups), {"nothing": 1})
    with pytest.raises(UsageError, match="settle=1"):
        Settling(GroupLasso(groups), groups, {}, 1)
    with pytest.raises(UsageError, match="12 positions of axis 'first' .of 12. cannot go"):
        Settling(GroupLasso(groups), groups, {"first": 12})
    module.first.weight.requires_grad_(False)
    with pytest.raises(ModelError, match=r"'first\.weight', which is frozen"):
        Groups(module, axes)


def test_weights_that_are_not_finite_are_named() -> None:
    module, _ = network("plain")
    groups = Groups(module, inner_axes("plain"))
    with torch.no_grad():
        module.head.weight[0, 0] = float("nan")
        module.first.bias[0] = float("inf")
    with pytest.raises(ModelError, match="axis 'first' are not finite"):
        groups.norms("first")
    groups.zero_("first", [0])
    assert bool(torch.isfinite(module.head.weight).all())
