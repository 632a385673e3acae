"""Cheaper activations: what is replaced, what the reference says, and where the user's class holds the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import paretoprune as pp
from paretoprune import graph as graphs
from paretoprune.core.plan import Plan
from paretoprune.graph.activations import MODULES, REPLACES, kind_of

ACTIVATIONS: dict[str, nn.Module] = {
    "silu": nn.SiLU(inplace=True),
    "gelu": nn.GELU(),
    "gelu tanh": nn.GELU(approximate="tanh"),
    "mish": nn.Mish(),
    "elu": nn.ELU(),
    "celu": nn.CELU(),
    "selu": nn.SELU(),
    "hardswish": nn.Hardswish(inplace=True),
    "leaky_relu": nn.LeakyReLU(),
    "softplus": nn.Softplus(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
}


class Net(nn.Module):
    def __init__(self, act: nn.Module, twice: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.act = act
        self.second = nn.Conv2d(8, 6, 3)
        self.again = act if twice else nn.SiLU()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.second(self.act(self.first(x))))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Functional(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.second(self.act(self.first(x))))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


X = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_with_a_cheaper_one_is_replaced(name: str) -> None:
    model = Net(ACTIVATIONS[name]).eval()
    traced = pp.trace(model, X)
    for cheaper, sources in REPLACES.items():
        if name.split()[0] not in sources:
            with pytest.raises(pp.errors.PlanError, match=f"'act' names none that {cheaper} is cheaper than"):
                graphs.activated(traced, {"act": cheaper})
            continue
        plan = Plan(activations={"act": cheaper})
        expected = Net(MODULES[cheaper]()).eval()
        expected.load_state_dict(model.state_dict())
        torch.testing.assert_close(graphs.cut(traced, plan).program.module(X), expected(X))


def test_modules_are_exchanged_in_the_class() -> None:
    model = Net(nn.GELU(approximate="tanh")).eval()
    pruned = pp.prune(model, X, activations={"act": "relu"})
    assert isinstance(pruned.model, Net)
    assert isinstance(pruned.model.act, nn.ReLU)
    assert isinstance(pruned.model.again, nn.SiLU)
    assert isinstance(model.act, nn.GELU)
    assert pruned.plan == Plan.from_json(pruned.plan.to_json())


def test_patterns_are_of_nodes_and_of_modules_and_the_first_counts() -> None:
    traced = pp.trace(Net(nn.GELU()), X)
    kinds = [kind_of(n) for n in graphs.activated(traced, {"again": "hardswish", "*": "relu"}).captured.graph.nodes]
    assert [k for k in kinds if k] == ["hardswish"]  # ReLU itself has no cheaper one
    node = next(n.name for n in traced.captured.graph.nodes if kind_of(n) == "silu")
    cut = graphs.cut(traced, Plan(activations={node: "relu"}))
    assert cut.activations == {node: "relu"}


@pytest.mark.parametrize(
    ("activations", "words"),
    [
        ({"nothing": "relu"}, r"'nothing' names none that relu .*'silu' \(silu in act\)"),
        ({"*": "swish"}, "'swish' for '.' is not offered; give one of relu, hardswish"),
        ({"act": "hardsigmoid"}, r"'act' names none that hardsigmoid is cheaper than \(sigmoid\)"),
        ({"*": 1}, "give a name or pattern and the cheaper one"),
        ("relu", "give a name or pattern and the cheaper one"),
    ],
)
def test_what_cannot_be_replaced_is_said(activations: Any, words: str) -> None:
    with pytest.raises(pp.errors.UsageError, match=words):
        pp.prune(Net(nn.SiLU()), X, activations=activations)


def test_a_module_that_is_held_twice_is_exchanged_in_both_places() -> None:
    model = Net(nn.SiLU(), twice=True).eval()
    pruned = pp.prune(model, X, activations={"*": "relu"})
    assert isinstance(pruned.model, Net)
    assert pruned.model.act is pruned.model.again
    assert isinstance(pruned.model.act, nn.ReLU)


def test_an_activation_that_is_called_as_a_function_becomes_the_rewritten_graph() -> None:
    pruned = pp.prune(Functional(nn.SiLU()).eval(), X, activations={"*": "relu"})
    assert not isinstance(pruned.model, Net)
    assert any("the forward of Functional calls an activation that was replaced" in note for note in pruned.notes)


def test_it_goes_with_pruning_and_through_files_and_plans(tmp_path: Path) -> None:
    model = Net(nn.GELU()).eval()
    calibration = [torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))]
    pruned = pp.prune(model, X, ratio=0.5, activations={"*": "hardswish"}, calibration=calibration)
    assert pruned.model.first.out_channels == 4
    pp.save(pruned, tmp_path / "saved")
    for network in (pp.load(tmp_path / "saved", Net(nn.GELU())), pp.load(tmp_path / "saved")):
        torch.testing.assert_close(network.model(X), pruned.model(X))
    again = pp.apply(model, X, pruned.plan.to_json(), calibration=calibration)
    torch.testing.assert_close(again.model(X), pruned.model(X))


def test_what_stands_at_removed_positions_is_asked_of_the_new_graph() -> None:
    """softplus(0) is not 0: its axis cannot be summed over as if it were; behind ReLU it can."""

    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.act = nn.Linear(6, 8), nn.Softplus()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.enter(x)).sum(1, keepdim=True)

    traced = pp.trace(Summed(), torch.randn(4, 6))
    assert not any(a.prunable for a in traced.axes)
    swapped = graphs.activated(traced, {"*": "relu"})
    assert [a.id for a in swapped.axes if a.prunable] == ["enter"]
    plan = Plan({"enter": (0, 2, 5)}, activations={"*": "relu"})
    graphs.check(traced, plan)
    assert graphs.cut(traced, plan).program.module.get_parameter("enter.weight").shape == (3, 6)
    with pytest.raises(pp.errors.PlanError, match="cannot prune axis 'enter'"):
        graphs.cut(traced, Plan({"enter": (0, 2, 5)}))


def test_a_file_cannot_put_an_activation_where_a_layer_is(tmp_path: Path) -> None:
    for swap in (("first", "relu"), ("act", "eval"), ("", "relu"), ("no.such", "relu")):
        with pytest.raises(pp.errors.FileError, match="in whose place"):
            graphs.put_activations(Net(nn.SiLU()), [swap])


def test_reconstruction_repairs_most_of_what_the_exchange_does() -> None:
    torch.manual_seed(0)
    model, seen = Net(nn.SiLU()).eval(), torch.randn(256, 1, 6, 6)
    fresh = torch.randn(256, 1, 6, 6)
    with torch.no_grad():
        wanted = model(fresh)
        alone = pp.prune(model, X, activations={"*": "relu"}).model(fresh)
        fitted = pp.prune(model, X, activations={"*": "relu"}, calibration=[seen]).model(fresh)
    assert (fitted - wanted).square().mean() < 0.3 * (alone - wanted).square().mean()
