"""The one training loop: what it promises whatever the loss."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from paretoprune.core.errors import DataError, PruneError, UsageError
from paretoprune.recover import Batch, train, training
from paretoprune.recover.inputs import rounds
from paretoprune.recover.precision import Mixed

Make = Callable[[Any], Optimizer]


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(2)
    xs = [torch.randn(32, 6, generator=made) for _ in range(6)]
    return [(x, x[:, :4].argmax(1)) for x in xs]


def loss(module: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(module(*batch.inputs.args), batch.labels)


def plain(parameters: Any) -> SGD:
    return SGD(parameters, lr=0.1)


def constant(optimizer: Any) -> LambdaLR:
    return LambdaLR(optimizer, lambda _: 1.0)


class Watcher:
    """A hook that pulls the first weight to zero and writes down how it is called."""

    def __init__(self, weight: Tensor, strength: float = 0.5) -> None:
        self.weight, self.strength = weight, strength
        self.calls: list[tuple[str, int, int]] = []
        self.moved: list[Tensor] = []

    def penalty(self, step: int, steps: int) -> Tensor | None:
        self.calls.append(("penalty", step, steps))
        self.moved.append(self.weight.detach().clone())
        return self.strength * self.weight.square().sum() if step else None

    def after_step(self, step: int, steps: int) -> None:
        self.calls.append(("after", step, steps))
        self.moved.append(self.weight.detach().clone())

    def state_dict(self) -> dict[str, Any]:
        return {"strength": self.strength}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.strength = state["strength"]


def test_one_step_is_the_optimizer_on_the_gradient_of_loss_and_penalty() -> None:
    """Written out by hand for a linear network, two steps: the first without a penalty, the second with it."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2, bias=False)
    x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
    weight = net.weight.detach().clone()
    for strength in (0.0, 0.5):
        gradient = (functional.one_hot(y, 2) - (x @ weight.T).softmax(1)).T @ x / -8 + 2 * strength * weight
        weight = weight - 0.1 * gradient
    hook = Watcher(net.weight)
    seen: list[float] = []
    train(
        net, loss, [(x, y)], steps=2, optimizer=plain, scheduler=constant, hooks=[hook], clip=None,
        on_step=lambda _, value: seen.append(value),
    )  # fmt: skip
    torch.testing.assert_close(net.weight.detach(), weight)
    assert hook.calls == [("penalty", 0, 2), ("after", 0, 2), ("penalty", 1, 2), ("after", 1, 2)]
    assert not torch.equal(hook.moved[0], hook.moved[1]), "after_step comes once the optimizer has stepped"
    assert torch.equal(hook.moved[1], hook.moved[2])
    expected = functional.cross_entropy(x @ hook.moved[2].T, y) + 0.5 * hook.moved[2].square().sum()
    assert seen[1] == pytest.approx(float(expected), rel=1e-5), "the loss that is reported has the penalty in it"


@pytest.mark.parametrize(
    "make",
    [Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam],
)
def test_any_optimizer(net: nn.Sequential, batches: list[Any], make: Make) -> None:
    before = sum(float(loss(net.eval(), Batch.of(b)).detach()) for b in batches)
    train(net, loss, batches, steps=12, optimizer=lambda p: make(p, lr=0.05), scheduler=constant)  # type: ignore[call-arg]
    assert sum(float(loss(net, Batch.of(b)).detach()) for b in batches) < before


def test_an_optimizer_that_calls_the_loss_itself(batches: list[Any]) -> None:
    """Least squares in one call of L-BFGS."""
    net, (x, _) = nn.Linear(6, 2), batches[0]
    wanted = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))

    def squares(module: nn.Module, batch: Batch) -> Tensor:
        return functional.mse_loss(module(*batch.inputs.args), batch.labels)

    def newton(parameters: Any) -> torch.optim.LBFGS:
        return torch.optim.LBFGS(parameters, line_search_fn="strong_wolfe")

    train(net, squares, [(x, x @ wanted)], steps=2, optimizer=newton, scheduler=constant, clip=None)
    torch.testing.assert_close(net.weight.detach(), wanted.T, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: CosineAnnealingLR(o, 6),
        lambda o: OneCycleLR(o, 0.1, 6),
        lambda o: SequentialLR(o, [ConstantLR(o, 0.1, 3), CosineAnnealingLR(o, 3)], [3]),
        lambda o: MultiStepLR(o, [2, 4, 4]),
    ],
)
def test_any_scheduler_steps_once_a_batch(
    net: nn.Sequential, batches: list[Any], make: Callable[[Any], LRScheduler]
) -> None:
    rates: list[float] = []
    made: list[Optimizer] = []

    def optimizer(parameters: Any) -> SGD:
        made.append(SGD(parameters, lr=0.1, momentum=0.9))
        made[0].register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        return made[0]  # type: ignore[return-value]

    train(net, loss, batches, steps=6, optimizer=optimizer, scheduler=make)
    alone = SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler, expected = make(alone), []
    for _ in range(6):
        expected.append(alone.param_groups[0]["lr"])
        alone.step()
        scheduler.step()
    assert rates == pytest.approx(expected)


def test_plateau_is_told_the_validations(net: nn.Sequential, batches: list[Any]) -> None:
    made: list[Optimizer] = []

    def optimizer(parameters: Any) -> SGD:
        made.append(SGD(parameters, lr=0.1))
        return made[0]  # type: ignore[return-value]

    def scheduler(given: Any) -> Any:
        return ReduceLROnPlateau(given, mode="max", patience=0, factor=0.5)

    train(net, loss, batches, steps=4, optimizer=optimizer, scheduler=scheduler, validate=lambda _: 0.0, check_every=1)
    assert made[0].param_groups[0]["lr"] == pytest.approx(0.1 / 8)
    with pytest.raises(UsageError, match="ReduceLROnPlateau needs validate="):
        train(net, loss, batches, steps=4, scheduler=scheduler)


def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32(net: nn.Sequential, batches: list[Any]) -> None:
    types: set[torch.dtype] = set()

    def watched(module: nn.Module, batch: Batch) -> Tensor:
        output = module(*batch.inputs.args)
        types.add(output.dtype)
        return functional.cross_entropy(output, batch.labels)

    before = sum(float(loss(net.eval(), Batch.of(b)).detach()) for b in batches)
    train(net, watched, batches, steps=30, precision="bf16")
    assert types == {torch.bfloat16}
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert sum(float(loss(net, Batch.of(b)).detach()) for b in batches) < before


@pytest.mark.parametrize(
    ("precision", "says"), [("fp16", "needs a CUDA device.*use precision='bf16'"), ("int8", "one")]
)
def test_precisions_that_cannot_be(net: nn.Sequential, batches: list[Any], precision: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        train(net, loss, batches, steps=1, precision=precision)


class Scaled(Mixed):
    """The loss scaling of fp16, on the CPU in fp32: it begins so large that gradients are infinite."""

    start = 2.0**127

    def __init__(self, precision: str, place: torch.device) -> None:
        super().__init__(precision, place)
        self.scaler = GradScaler("cpu", init_scale=self.start)


def test_a_loss_scale_that_is_too_large_leaves_steps_out(
    net: nn.Sequential, batches: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "Mixed", Scaled)
    weights, rates, made = [net[0].weight.detach().clone()], [], []

    def optimizer(parameters: Any) -> SGD:
        made.append(SGD(parameters, lr=0.1))
        return made[0]

    def on_step(step: int, value: float) -> None:
        weights.append(net[0].weight.detach().clone())
        rates.append(made[0].param_groups[0]["lr"])

    options: dict[str, Any] = {"scheduler": lambda o: LambdaLR(o, lambda s: 1 / (1 + s)), "steps": 12}
    train(net, lambda m, b: 100 * loss(m, b), batches, optimizer=optimizer, on_step=on_step, **options)
    moved = [not torch.equal(a, b) for a, b in pairwise(weights)]
    skipped = moved.index(True)
    assert 0 < skipped < 10
    assert all(moved[skipped:])
    assert rates == pytest.approx([0.1] * skipped + [0.1 / (2 + i) for i in range(12 - skipped)]), (
        "nor did the schedule"
    )


def test_gradients_that_are_infinite_at_any_scale(
    net: nn.Sequential, batches: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "Mixed", Scaled)
    monkeypatch.setattr(Scaled, "start", 4.0)

    def steep(module: nn.Module, batch: Batch) -> Tensor:
        finite: Tensor = loss(module, batch)
        return finite.detach() + (finite - finite.detach()) * 1e38 * 1e10

    with pytest.raises(PruneError, match="infinite in fp16 at any scale.*use precision='bf16'"):
        train(net, steep, batches, steps=20)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(net: nn.Sequential, batches: list[Any], precision: str) -> None:
    before = sum(float(loss(net.eval(), Batch.of(b)).detach()) for b in batches)
    train(net, loss, batches, steps=30, device="cuda", precision=precision)
    assert {p.device.type for p in net.parameters()} == {"cpu"}
    assert sum(float(loss(net, Batch.of(b)).detach()) for b in batches) < before


def test_the_last_weights_count_unless_patience_is_asked_for(net: nn.Sequential, batches: list[Any]) -> None:
    """Values rise to the third check and then fall."""
    values = [0.1, 0.5, 0.9, 0.8, 0.7, 0.6]

    def run(patience: int | None) -> tuple[nn.Module, list[Tensor], Any]:
        mine, seen, given = copy.deepcopy(net), [], iter(values)

        def validate(module: nn.Module) -> float:
            assert not module.training
            assert not torch.is_grad_enabled()
            torch.rand(3), np.random.rand(), random.random()
            seen.append(mine[0].weight.detach().clone())
            return next(given)

        done = train(mine, loss, batches, steps=6, check_every=1, validate=validate, patience=patience)
        return mine, seen, done

    last, seen, done = run(None)
    assert torch.equal(last[0].weight, seen[5])  # type: ignore[index]
    assert done.steps == 6
    assert done.validations == tuple(zip(range(1, 7), values, strict=True))
    best, seen, done = run(2)
    assert done.steps == 5
    assert torch.equal(best[0].weight, seen[2])  # type: ignore[index]
    silent = copy.deepcopy(net)
    train(silent, loss, batches, steps=6)
    assert torch.equal(silent[0].weight, last[0].weight), "validation leaves no trace in the training"  # type: ignore[index]


def test_random_states_of_the_caller_stay(net: nn.Sequential, batches: list[Any]) -> None:
    class Drawing:
        def __iter__(self) -> Iterator[Any]:
            for x, y in batches:
                yield x + 0.1 * torch.randn(x.shape) * float(np.random.rand()) * random.random(), y

    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[union-attr]
    runs = []
    for _ in range(2):
        mine = copy.deepcopy(net)
        train(mine, loss, Drawing(), steps=9, seed=3)
        runs.append(mine[0].weight)
    assert torch.equal(runs[0], runs[1])
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[union-attr]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_mode_gradients_and_clip(net: nn.Sequential, batches: list[Any]) -> None:
    moves = [net[0].weight.detach().clone()]
    train(
        net, loss, batches, steps=4, optimizer=plain, scheduler=constant, clip=1e-3,
        on_step=lambda *_: moves.append(net[0].weight.detach().clone()),
    )  # fmt: skip
    assert all(float((b - a).norm()) <= 0.1 * 1e-3 * 1.01 for a, b in pairwise(moves))
    assert not net.training
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "steps=0; give at least 1"),
        ({"check_every": 0}, "check_every=0"),
        ({"patience": 0, "validate": len}, "patience=0"),
        ({"patience": 2}, "patience=2 needs validate="),
        ({"clip": 0.0}, "clip=0.0"),
    ],
)
def test_settings_out_of_range(net: nn.Sequential, batches: list[Any], options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        train(net, loss, batches, **{"steps": 2, **options})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda m, b: 0.5, "it is float"),
        (lambda m, b: m(*b.inputs.args), r"it is shape \(32, 4\)"),
        (lambda m, b: loss(m, b).detach(), "do not detach"),
    ],
)
def test_a_loss_that_is_no_scalar_with_gradients(net: nn.Sequential, batches: list[Any], wrong: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        train(net, wrong, batches, steps=2)


def test_a_validation_that_is_no_number(net: nn.Sequential, batches: list[Any]) -> None:
    with pytest.raises(PruneError, match=r"validate\(\) gave nan after 1 steps"):
        train(net, loss, batches, steps=2, check_every=1, validate=lambda _: float("nan"))


def test_an_iterator_is_refused_unread(net: nn.Sequential, batches: list[Any]) -> None:
    given = iter(batches)
    with pytest.raises(DataError, match="can be read only once"):
        train(net, loss, given, steps=2)
    assert len(list(given)) == len(batches)


def test_index_is_of_batches_that_stay_what_they_are() -> None:
    """An answer that is kept by index must belong to the same tensors."""
    fixed = [torch.randn(4, 6) for _ in range(3)]

    class Fresh(list[Tensor]):
        def __getitem__(self, index: Any) -> Any:
            return super().__getitem__(index) + 1

    stays, changes = rounds(fixed, 0), rounds(Fresh(fixed), 0)
    assert sorted(str(next(stays).index) for _ in range(3)) == ["0", "1", "2"]
    assert [next(changes).index for _ in range(3)] == [None] * 3
