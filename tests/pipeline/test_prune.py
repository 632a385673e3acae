"""`pp.prune` and `pp.apply`: smaller, proved, recovered; the caller's network is left alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.core.protocols import Need, Role, View
from paretoprune.graph import slice_tensor, tensors_of

errors = pp.errors


class Mlp(nn.Module):
    """Takes keyword inputs; hidden widths 24 and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 24)
        self.two = nn.Linear(24, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.out(torch.relu(self.two(torch.relu(self.one(features)))))
        return result


@pytest.fixture
def mlp() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Mlp()


def features(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def error_on(model: nn.Module, reference: nn.Module, batches: list[Any]) -> float:
    with torch.no_grad():
        return float(sum((model(x) - reference(x)).square().mean() for x, _ in batches))


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_half_of_the_channels_of_a_convolutional_network(net: nn.Module, example: Tensor) -> None:
    pruned = pp.prune(net, example, ratio=0.5)
    assert type(pruned.model) is type(net)
    assert pruned.model.conv1.weight.shape == (8, 1, 3, 3)
    assert pruned.model.conv2.weight.shape == (16, 8, 3, 3)
    assert pruned.model.head.weight.shape == (4, 16)
    assert pruned.model.conv1.out_channels == 8
    assert pruned.macs == 8 * 9 * 64 + 16 * 8 * 9 * 16 + 16 * 4
    assert pruned.original_macs == 83_072
    for count in (1, 3):
        assert pruned.model(torch.randn(count, 1, 8, 8)).shape == (count, 4)


def test_the_weights_are_those_at_the_kept_positions(net: nn.Module, example: Tensor) -> None:
    before = tensors_of(net)
    pruned = pp.prune(net, example, ratio={"conv1": 0.25})
    after = tensors_of(pruned.model)
    assert pruned.kept["conv1.weight"][0] is not None
    for name, dims in pruned.kept.items():
        assert torch.equal(after[name], slice_tensor(before[name], dims)), name
    norms = before["conv1.weight"].flatten(1).norm(dim=1)
    assert set(np.argsort(norms.detach().numpy())[4:].tolist()) == set(pruned.kept["conv1.weight"][0].tolist())


def test_a_fully_connected_network_with_keyword_inputs(mlp: nn.Module) -> None:
    pruned = pp.prune(mlp, {"features": features(2)}, ratio=0.5)
    assert (pruned.model.one.out_features, pruned.model.two.out_features) == (12, 8)
    assert pruned.model(features=features(5)).shape == (5, 3)


def test_without_a_ratio_to_remove_the_outputs_are_the_same(net: nn.Module, example: Tensor) -> None:
    pruned = pp.prune(net, example, ratio=0.0)
    torch.testing.assert_close(pruned.model(example), net(example), rtol=0, atol=0)
    assert pruned.model is not net


@pytest.mark.parametrize("training", [True, False])
def test_the_callers_network_is_left_alone(net: nn.Module, example: Tensor, data: pp.Data, training: bool) -> None:
    net.train(training)
    net.conv2.weight.requires_grad_(False)
    net.head.weight.grad = torch.full_like(net.head.weight, 0.5)
    fired: list[int] = []
    net.bn1.register_forward_hook(lambda *_: fired.append(1))
    before = {n: t.clone() for n, t in tensors_of(net).items()}
    shapes_of = {n: id(t) for n, t in tensors_of(net).items()}
    state = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["pos"]
    pp.prune(net, example, macs=0.5, criterion="taylor", calibration=data.train)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state(legacy=False)["state"]["pos"] == state[1]
    assert net.training is training
    assert all(m.training is training for m in net.modules())
    assert {n: id(t) for n, t in tensors_of(net).items()} == shapes_of
    for name, tensor in tensors_of(net).items():
        assert torch.equal(tensor, before[name]), name
    assert not net.conv2.weight.requires_grad
    assert net.conv1.weight.requires_grad
    assert net.conv1.weight.grad is None
    assert bool((net.head.weight.grad == 0.5).all())
    assert fired == []
    net(example)
    assert fired == [1]


# -- calibration ------------------------------------------------------------------------------------------------------


def test_calibration_makes_up_for_what_was_removed(net: nn.Module, example: Tensor, data: pp.Data) -> None:
    batches = list(data.train)
    plain = pp.prune(net, example, macs=0.5, criterion="magnitude")
    told = pp.apply(net, example, plain.plan, calibration=batches)
    assert error_on(told.model, net, batches) < 0.5 * error_on(plain.model, net, batches)
    unseen = list(data.test)
    assert error_on(told.model, net, unseen) < error_on(plain.model, net, unseen)


def test_half_the_macs_with_taylor_and_calibration(net: nn.Module, example: Tensor, data: pp.Data) -> None:
    batches = list(data.train)
    pruned = pp.prune(net, example, macs=0.5, criterion="taylor", calibration=batches)
    assert 0.3 < pruned.macs / pruned.original_macs <= 0.5
    without = pp.apply(net, example, pruned.plan)
    assert error_on(pruned.model, net, batches) < error_on(without.model, net, batches)


def test_taylor_needs_labels(net: nn.Module, example: Tensor, data: pp.Data) -> None:
    with pytest.raises(errors.DataError, match="criterion 'taylor' needs gradients: give calibration="):
        pp.prune(net, example, ratio=0.5, criterion="taylor")
    with pytest.raises(errors.DataError, match="no labels: gradients of the loss need"):
        pp.prune(net, example, ratio=0.5, criterion="taylor", calibration=[x for x, _ in data.train])


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: x,
        lambda x, y: (x,),
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: {"features": x},
        lambda x, y: {"features": x, "labels": y},
    ],
    ids=["x", "(x,)", "(x, y)", "[x, y]", "dict", "dict with labels"],
)
def test_a_batch_may_have_any_form(mlp: nn.Module, form: Callable[[Tensor, Tensor], Any]) -> None:
    labels = torch.randint(0, 3, (32,), generator=torch.Generator().manual_seed(1))
    expected = pp.prune(mlp, features(2), ratio=0.5, calibration=[(features(32), labels)])
    pruned = pp.prune(mlp, features(2), ratio=0.5, calibration=[form(features(32), labels)])
    torch.testing.assert_close(pruned.model(features(4)), expected.model(features(4)))


def test_calibration_that_does_not_fit_names_the_batch(net: nn.Module, example: Tensor) -> None:
    with pytest.raises(errors.DataError, match=r"calibration, batch 0: input 'input' has shape \(any, 3, 8, 8\)"):
        pp.prune(net, example, ratio=0.5, calibration=[torch.zeros(4, 3, 8, 8)])
    with pytest.raises(errors.DataError, match="calibration can be read only once"):
        pp.prune(net, example, ratio=0.5, calibration=(x for x in [example]))
    with pytest.raises(errors.DataError):
        pp.prune(net, example, ratio=0.5, calibration=[])


# -- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["object", "json"])
def test_a_plan_replays_on_a_fresh_checkpoint(
    net: nn.Module, make_net: Callable[[], nn.Module], example: Tensor, through: str
) -> None:
    pruned = pp.prune(net, example, ratio=0.5)
    plan = pruned.plan if through == "object" else json.loads(pruned.plan.dumps())
    other = make_net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.25)
    again = pp.apply(other, example, plan)
    assert again.plan.kept == pruned.plan.kept
    assert again.kept.keys() == pruned.kept.keys()
    for name, dims in pruned.kept.items():
        for mine, theirs in zip(dims, again.kept[name], strict=True):
            assert (mine is None) == (theirs is None)
            assert mine is None or np.array_equal(mine, theirs)
        assert torch.equal(tensors_of(again.model)[name], slice_tensor(tensors_of(other)[name], dims))


def test_a_plan_for_another_network_is_refused(net: nn.Module, mlp: nn.Module, example: Tensor) -> None:
    plan = pp.prune(net, example, ratio=0.5).plan
    with pytest.raises(errors.PlanError):
        pp.apply(mlp, features(2), plan)
    with pytest.raises(errors.PlanError, match="99"):
        pp.apply(net, example, pp.Plan({"conv1": (0, 99)}))
    with pytest.raises(errors.PlanError, match="not a plan"):
        pp.apply(net, example, {"kept": {}})
    with pytest.raises(errors.FileError, match="upgrade paretoprune"):
        pp.apply(net, example, {"schema": 99, "kept": {}})


# -- criteria ---------------------------------------------------------------------------------------------------------


class First:
    """The first positions matter most."""

    name = "first"
    members: Role = "out"
    needs: frozenset[Need] = frozenset()
    remove: Literal["low", "high"] = "low"
    comparable = False

    def score(self, view: View) -> Tensor:
        return torch.arange(view.weight.shape[0], 0, -1).double()


def test_a_criterion_of_ones_own(net: nn.Module, example: Tensor) -> None:
    pruned = pp.prune(net, example, ratio=0.5, criterion=First())
    assert pruned.plan.kept["conv1"] == tuple(range(8))
    assert pruned.plan.kept["conv2"] == tuple(range(16))


def test_a_criterion_by_reference(
    net: nn.Module, example: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_criteria_of_a_user.py").write_text(
        "import torch\n"
        "class Last:\n"
        "    name, members, needs, remove, comparable = 'last', 'out', frozenset(), 'low', False\n"
        "    def score(self, view):\n"
        "        return torch.arange(view.weight.shape[0]).double()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pruned = pp.prune(net, example, ratio=0.5, criterion="own_criteria_of_a_user:Last")
    assert pruned.plan.kept["conv1"] == tuple(range(8, 16))
    with pytest.raises(errors.UsageError, match="has no attribute 'Lost'"):
        pp.prune(net, example, ratio=0.5, criterion="own_criteria_of_a_user:Lost")
    with pytest.raises(errors.UsageError, match="did you mean 'taylor'"):
        pp.prune(net, example, ratio=0.5, criterion="tailor")


def test_a_criterion_that_gives_no_scores_is_refused(net: nn.Module, example: Tensor) -> None:
    class Empty(First):
        def score(self, view: View) -> Tensor:
            return torch.full((view.weight.shape[0],), float("nan"))

    with pytest.raises(errors.PruneError, match="criterion 'first' gave an infinite or NaN score"):
        pp.prune(net, example, ratio=0.5, criterion=Empty())


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_weight_is_named(net: nn.Module, example: Tensor, value: float) -> None:
    with torch.no_grad():
        net.conv2.weight[0, 0, 0, 0] = value
    with pytest.raises(errors.ModelError, match=r"'conv2\.weight' holds 1 (NaN|infinite) value"):
        pp.prune(net, example, ratio=0.5)


def test_one_of_ratio_and_macs(net: nn.Module, example: Tensor) -> None:
    for options in ({}, {"ratio": 0.5, "macs": 0.5}):
        with pytest.raises(errors.UsageError, match="give either ratio="):
            pp.prune(net, example, **options)


@pytest.mark.parametrize("options", [{"ratio": -1}, {"ratio": "x"}, {"macs": 0}, {"macs": "half"}, {"macs": -1.0}])
def test_shares_that_are_none(net: nn.Module, example: Tensor, options: dict[str, Any]) -> None:
    with pytest.raises(errors.UsageError, match="give the share of"):
        pp.prune(net, example, **options)


def test_unknown_task(net: nn.Module, example: Tensor) -> None:
    with pytest.raises(errors.UsageError, match="unknown task 'clasification'.*did you mean 'classification'"):
        pp.prune(net, example, ratio=0.5, task="clasification")


def test_a_pruned_network_trains(net: nn.Module, example: Tensor, data: pp.Data) -> None:
    pruned = pp.prune(net, example, ratio=0.5)
    student = copy.deepcopy(pruned.model).train()
    optimiser = torch.optim.SGD(student.parameters(), lr=0.05)
    losses = []
    for x, y in list(data.train) * 3:
        loss = nn.functional.cross_entropy(student(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < sum(losses[:4])
    assert not torch.equal(student.conv1.weight, pruned.model.conv1.weight)
