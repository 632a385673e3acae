"""`pp.prune_gradually`, and the adjusting step alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.core.errors import DataError, ModelError, PlanError, PruneError, UsageError
from paretoprune.criteria import criterion_of
from paretoprune.pipeline import gradual
from paretoprune.pipeline.choose import chosen_axes
from paretoprune.pipeline.rounds import DOWN, UP, adjusting, noise_of, pace
from paretoprune.tasks import task_of

QUICK: dict[str, Any] = {"rounds": 3, "steps_per_round": 4, "lr": 0.005}


def test_it_reaches_the_target_in_the_planned_rounds(net: nn.Module, example: Tensor, data: pp.Data) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.random.get_rng_state()
    seen: list[Any] = []
    result = pp.prune_gradually(net, example, data, ratio=0.5, adjust=False, on_round=seen.append, **QUICK)
    assert result.stopped == "target"
    assert seen == list(result.history)
    times = [1 / 3, 2 / 3, 1.0]
    assert [r.way for r in result.history] == pytest.approx([1 - (1 - t) ** 3 for t in times])
    assert {axis: len(kept) for axis, kept in result.pruned.plan.kept.items()} == {"conv1": 8, "conv2": 16}
    assert type(result.pruned.model) is type(net)
    assert result.accuracy == result.history[-1].accuracy
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_what_is_gone_stays_gone_and_the_result_is_what_was_measured(
    net: nn.Module, example: Tensor, data: pp.Data
) -> None:
    seen: list[Any] = []
    result = pp.prune_gradually(
        net, example, data, macs=0.4, criterion="taylor", schedule="linear", on_round=seen.append, **QUICK
    )
    assert result.stopped == "target"
    macs = [r.macs for r in result.history]
    assert macs == sorted(macs, reverse=True)
    assert result.pruned.macs == macs[-1] <= 0.4 * result.pruned.original_macs
    widths = [r.widths for r in result.history]
    assert all(b.get(axis, 99) <= w for a, b in itertools.pairwise(widths) for axis, w in a.items())
    hits = [(result.pruned.model(x).argmax(1) == y).float() for x, y in data.validation]
    assert float(torch.cat(hits).mean()) == pytest.approx(result.accuracy)


def test_a_plan_of_a_later_round_is_within_that_of_an_earlier_one(
    net: nn.Module, example: Tensor, data: pp.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[pp.Plan] = []
    carry_out = gradual.carry_out
    monkeypatch.setattr(gradual, "carry_out", lambda *args: plans.append(args[2]) or carry_out(*args))
    pp.prune_gradually(net, example, data, ratio=0.6, **QUICK)
    kept = [plan.kept for plan in plans if plan.kept]
    assert len(kept) >= 2
    assert all(set(b[axis]) <= set(a[axis]) for a, b in itertools.pairwise(kept) for axis in a)


def work_of(net: nn.Module, example: Tensor, data: pp.Data, **goal: Any) -> gradual._Work:
    traced = pp.trace(net, example)
    axes = chosen_axes(traced)
    target = gradual._Goal(axes, goal.get("ratio"), goal.get("macs"), 1, 1)
    return gradual._Work(net, traced, target, criterion_of("magnitude"), task_of("classification"), data, {}, None)


def test_what_was_trained_is_what_the_next_round_starts_from(net: nn.Module, example: Tensor, data: pp.Data) -> None:
    """Weights and running statistics, in the full network (zero where something went) and in the next cut."""
    work = work_of(net, example, data, ratio=0.5)
    plan = work.plan(1.0, work.scores())
    pruned = pp.apply(net, example, plan)
    trained = pp.finetune(pruned, data.train, steps=5, lr=0.05)
    work.take(trained)
    again = gradual.carry_out(work.net, work.traced, plan, None).model
    x = data.validation[0][0]
    with torch.no_grad():
        expected = trained.model(x)
        assert float((expected - pruned.model(x)).abs().max()) > 1e-3
        torch.testing.assert_close(again(x), expected)
        torch.testing.assert_close(work.net(x), expected)
        torch.testing.assert_close(work.traced.program.module(x), expected)
    later = work.plan(0.1, work.scores())
    assert later.kept == plan.kept  # no wider than what is left


def test_the_drop_limit_takes_a_round_back(net: nn.Module, example: Tensor, data: pp.Data) -> None:
    """Training that ruins the network: nothing is accepted, the amount is halved, and the given network comes back."""
    options = {**QUICK, "lr": 50.0}
    result = pp.prune_gradually(net, example, data, ratio=0.8, max_drop=0.0, **options)
    assert result.stopped == "drop limit"
    assert not any(r.accepted for r in result.history)
    amounts = [r.amount for r in result.history]
    assert amounts == sorted(amounts, reverse=True)
    assert len(amounts) > 1
    assert result.pruned.macs == result.pruned.original_macs
    assert result.accuracy == result.original
    with torch.no_grad():
        torch.testing.assert_close(result.pruned.model(example), net(example))


def test_without_adjusting_the_first_round_beyond_the_limit_ends_it(
    net: nn.Module, example: Tensor, data: pp.Data
) -> None:
    options = {**QUICK, "lr": 50.0}
    result = pp.prune_gradually(net, example, data, ratio=0.8, max_drop=0.0, adjust=False, **options)
    assert (result.stopped, len(result.history)) == ("drop limit", 1)


def test_figures_of_a_target_stand_in_the_history_and_move_the_amount(
    net: nn.Module, example: Tensor, data: pp.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def figures(pruned: Any, example: Any, target: Any) -> dict[str, pp.Measurement]:
        return {
            "latency_ms": pp.Measurement(pruned.macs / 1e4, 0, 0, 1, "ms"),
            "energy_mj": pp.Measurement(pruned.macs / 1e3, 0, 0, 1, "mJ", "estimated"),
        }

    monkeypatch.setattr(gradual, "measure", figures)
    result = pp.prune_gradually(net, example, data, ratio=0.5, target="onnxruntime", **QUICK)
    said = ({"latency_ms": r.macs / 1e4, "energy_mj (estimated)": r.macs / 1e3} for r in result.history)
    assert [r.figures for r in result.history] == list(said)


positive = st.floats(0.001, 0.2)


@given(positive, positive, st.floats(0.05, 1), st.floats(0, 0.02))
def test_more_loss_never_means_a_larger_amount(lost: float, room: float, share: float, noise: float) -> None:
    a, b = (adjusting(x, room, share, 1.0, noise) for x in (lost, 2 * lost))
    assert DOWN <= b <= a <= UP
    assert adjusting(lost, room, share, 2.0, noise) >= a  # what saves more may lose more
    assert adjusting(lost, room / 2, share, 1.0, noise) <= a


def test_the_adjusting_step_moves_the_right_way() -> None:
    assert adjusting(-0.01, 0.02, 0.2, 1.0, 0.0) == UP
    assert adjusting(0.004, 0.02, 0.2, 1.0, 0.0) == pytest.approx(1.0)  # exactly its part of the room
    assert adjusting(0.008, 0.02, 0.2, 1.0, 0.0) == pytest.approx(0.5)
    assert adjusting(0.1, 0.0, 0.2, 1.0, 0.0) == DOWN
    assert adjusting(0.004, 0.0, 0.2, 1.0, 0.005) == UP  # within the noise nothing was lost
    assert pace({"macs": 20.0, "latency_ms": 2.0}, {"macs": 10.0, "latency_ms": 2.0}) == pytest.approx(1.5)
    assert pace({"macs": 1.0}, {"macs": 10.0}) == 0.5
    assert pace({"macs": 1.0}, {}) == 1.0
    assert noise_of(0.5, 100) == pytest.approx(0.05)
    assert noise_of(1.0, 100) == 0.01


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, UsageError, "give exactly one of them"),
        ({"ratio": 0.5, "macs": 0.5}, UsageError, "give exactly one of them"),
        ({"ratio": 1.5}, UsageError, "ratio=1.5"),
        ({"ratio": 1.0}, PlanError, "at least 1 must stay"),
        ({"macs": 0.0}, UsageError, "macs=0.0"),
        ({"macs": 1e-4}, PlanError, "cannot be reached"),
        ({"ratio": 0.5, "rounds": 0}, UsageError, "rounds=0"),
        ({"ratio": 0.5, "steps_per_round": 1.5}, UsageError, "steps_per_round=1.5"),
        ({"ratio": 0.5, "schedule": "quick"}, UsageError, "unknown schedule 'quick'"),
        ({"ratio": 0.5, "max_drop": 1}, UsageError, "0.01 is one point"),
        ({"ratio": 0.5, "max_drop": float("nan")}, UsageError, "max_drop=nan"),
        ({"ratio": 0.5, "adjust": 2}, UsageError, "adjust=2"),
        ({"ratio": 0.5, "criterion": "nothing"}, UsageError, "unknown criterion"),
        ({"ratio": 0.5, "checkpoint": "folder"}, UsageError, "checkpoint="),
        ({"ratio": 0.5, "target": "nothing"}, UsageError, "nothing"),
    ],
)
def test_arguments_are_checked(
    net: nn.Module, example: Tensor, data: pp.Data, options: dict[str, Any], error: type[PruneError], message: str
) -> None:
    with pytest.raises(error, match=message):
        pp.prune_gradually(net, example, data, **{**QUICK, **options})


def test_a_model_that_is_no_module_and_data_without_labels(net: nn.Module, example: Tensor, data: pp.Data) -> None:
    with pytest.raises(ModelError, match="the model is a str: training needs a torch.nn.Module"):
        pp.prune_gradually("model.keras", example, data, ratio=0.5, **QUICK)  # type: ignore[arg-type]
    bare = pp.Data(data.train, [x for x, _ in data.validation], data.test)
    with pytest.raises(DataError, match="validation, batch 0 has no labels"):
        pp.prune_gradually(net, example, bare, ratio=0.5, **QUICK)


@pytest.mark.fault
def test_nan_names_the_round_and_the_step(net: nn.Module, example: Tensor, data: pp.Data) -> None:
    calls: list[int] = []

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        calls.append(0)
        value = nn.functional.cross_entropy(output, labels)
        return value * (float("nan") if len(calls) == 6 else 1.0)

    task = pp.Task("mine", loss, lambda output, labels: (output.argmax(1) == labels).float())
    with pytest.raises(PruneError, match="round 1: the loss is nan at step 1"):
        pp.prune_gradually(net, example, data, ratio=0.5, task=task, adjust=False, **QUICK)
