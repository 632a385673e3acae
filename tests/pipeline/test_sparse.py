"""`pp.train_sparse`: what it promises, its errors, and a real small task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import paretoprune as pp
from paretoprune.core.errors import DataError, ModelError, PruneError, UsageError
from paretoprune.pipeline.sparse import SparseTrained
from small_networks import Plain, batches, network

METHODS = ["group_lasso", "greg", "l0", "sfp"]


@pytest.fixture
def plain() -> tuple[nn.Module, Tensor]:
    return network("plain")


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_removes_what_training_zeroed_from_a_network_of_the_callers_class(method: str) -> None:
    model, example = network("plain")
    before, random = state(model), torch.random.get_rng_state()
    result = pp.train_sparse(model, example, batches("plain"), method=method, steps=20, ratio=0.5)
    assert type(result.model) is Plain
    assert set(state(result.model)) == set(before)
    assert not result.model.training
    assert result.change < 1e-5
    assert len(result.removed["first"]) == 6
    pruned = pp.apply(result.model, example, result.plan())
    assert isinstance(pruned.model, Plain)
    assert pruned.model.first.out_features == 6
    with torch.no_grad():
        torch.testing.assert_close(pruned.model(example), result.model(example), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_plan_takes_zeroed_positions_first(plain: tuple[nn.Module, Tensor]) -> None:
    model, example = plain
    result = pp.train_sparse(model, example, batches("plain"), steps=10, ratio=0.5)
    zeroed = set(result.removed["first"])
    fewer, more = (set(range(12)) - set(result.plan(r).kept["first"]) for r in (0.25, 0.75))
    assert fewer < zeroed < more
    by_macs = result.plan(macs=0.5)
    assert set(range(12)) - set(by_macs.kept["first"]) == zeroed
    with pytest.raises(UsageError, match="ratio and macs were both given"):
        result.plan(0.5, macs=0.5)


def test_a_seed_repeats_itself(plain: tuple[nn.Module, Tensor]) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        data = batches("plain")
        return state(pp.train_sparse(*plain, data, method="l0", steps=8, seed=seed).model)

    one, same, other = run(1), run(1), run(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_any_optimizer_will_do(plain: tuple[nn.Module, Tensor]) -> None:
    result = pp.train_sparse(
        *plain,
        batches("plain"),
        method="sfp",
        steps=12,
        optimizer=lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.1),
        scheduler=lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0),
    )
    assert result.change < 1e-5


def test_a_normalisation_over_the_axis_is_said() -> None:
    model, example = network("attention")
    result = pp.train_sparse(
        model, example, batches("attention"), steps=6, ratio=0.5, axes=lambda axis: axis.kind == "residual"
    )
    assert result.change > 1e-3
    assert any("a normalisation takes" in note for note in result.notes)


class _Killed(Exception):
    pass


@pytest.mark.parametrize(("method", "stop"), [("l0", 5), ("l0", 15), ("sfp", 15)])
def test_a_killed_training_goes_on_from_its_checkpoint(method: str, stop: int, tmp_path: Path) -> None:
    """Before and after the choice at step 9, to the same weights."""
    model, example = network("plain")

    def kill(step: int, loss: float) -> None:
        if step == stop:
            raise _Killed

    def run(**options: Any) -> SparseTrained:
        return pp.train_sparse(model, example, batches("plain"), method=method, steps=20, check_every=2, **options)

    whole = run(checkpoint=tmp_path / "whole")
    with pytest.raises(_Killed):
        run(checkpoint=tmp_path / "killed", on_step=kill)
    again = run(checkpoint=tmp_path / "killed")
    assert again.removed == whole.removed
    expected = state(whole.model)
    for name, value in state(again.model).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


@pytest.mark.fault
def test_frozen_parameters_stay_frozen(plain: tuple[nn.Module, Tensor]) -> None:
    model, example = plain
    model.first.weight.requires_grad_(False)
    with pytest.raises(ModelError, match=r"every axis stands in a frozen parameter .*'first\.weight' is frozen"):
        pp.train_sparse(model, example, batches("plain"), steps=4)


@pytest.mark.fault
def test_nan_names_the_step(plain: tuple[nn.Module, Tensor]) -> None:
    model, example = plain
    data: list[Any] = batches("plain")
    calls: list[int] = []

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        calls.append(0)
        return functional.cross_entropy(output, labels) * (float("nan") if len(calls) == 4 else 1.0)

    task = pp.Task("mine", loss, lambda output, labels: (output.argmax(1) == labels).float())
    with pytest.raises(PruneError, match=r"sparse training \(greg\): the loss is nan at step 3"):
        pp.train_sparse(model, example, data, method="greg", steps=9, task=task)
    assert bool(torch.isfinite(model.first.weight).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lasso"}, "unknown method 'lasso'"),
        ({"steps": 0}, "steps=0"),
        ({"steps": True}, "steps=True"),
        ({"ratio": -0.1}, "ratio=-0.1"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"ratio": {"nothing": 0.5}}, "'nothing', which matches no axis"),
        ({"settle": 1.0}, "settle=1.0"),
        ({"strength": -1}, "strength=-1"),
        ({"lr": 0}, "lr=0"),
        ({"seed": -1}, "seed=-1"),
        ({"patience": 3, "validate": float}, "patience="),
        ({"momentum": 0.9}, "unknown keyword 'momentum'"),
        ({"axes": "outer"}, "axes='outer'"),
        ({"task": "nothing"}, "unknown task 'nothing'"),
    ],
)
def test_arguments_are_checked(plain: tuple[nn.Module, Tensor], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pp.train_sparse(*plain, batches("plain"), **{"steps": 4, **options})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([x for x, _ in batches("plain")], "has no labels"),
        ([], "no training batch"),
        (iter(batches("plain")), "can be read only once"),
        ([(torch.randn(4, 7), torch.zeros(4, dtype=torch.int64))], "has shape"),
        ([(torch.randn(4, 5), torch.full((4,), 9))], "the network has 3 classes"),
    ],
)
def test_batches_are_checked(plain: tuple[nn.Module, Tensor], given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pp.train_sparse(*plain, given, steps=4)


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(32)
        self.hidden = nn.Linear(32, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.conv1(x)))
        x = functional.relu(self.norm2(self.conv2(x)))
        result: Tensor = self.head(functional.relu(self.hidden(x.mean((2, 3)))))
        return result


def share(module: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((module(test[0]).argmax(1) == test[1]).float().mean())


@pytest.fixture(scope="module")
def digits() -> tuple[Digits, list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor], float]:
    """(trained network, training batches, test set, accuracy of the network trained on plainly and cut)."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy(raw.images.astype(np.float32) / 16)[:, None]
    x, y = (x - x.mean()) / x.std(), torch.from_numpy(raw.target.astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
    train, test = order[500:], order[:500]
    data = [(x[i], y[i]) for i in train.split(64)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = pp.finetune(Digits(), data, steps=200, lr=0.1)
    held = x[test], y[test]
    assert share(net, held) > 0.94
    return net, data, held, share(pp.prune(pp.finetune(net, data, steps=120), x[:2], ratio=0.5).model, held)


@pytest.mark.parametrize(
    "method", [m if m == "group_lasso" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_a_sparse_trained_network_keeps_its_accuracy_when_half_of_it_goes(
    digits: tuple[Digits, list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor], float], method: str
) -> None:
    """Digits, half of every inner axis, nothing tuned after pruning; as many steps without the method beside it."""
    net, data, test, cut = digits
    result = pp.train_sparse(net, test[0][:2], data, method=method, steps=120, ratio=0.5)
    pruned = pp.apply(result.model, test[0][:2], result.plan())
    kept = share(pruned.model, test)
    assert pruned.macs < 0.3 * pruned.original_macs
    assert kept > 0.85
    assert kept > cut + 0.2
