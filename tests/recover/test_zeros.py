"""Zeros that are held, brought in and moved while a network trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from paretoprune.core.errors import UsageError
from paretoprune.recover import Batch, Gradual, Masked, RigL, train

NAMES = ("0.weight", "2.weight")
BATCHES = [(torch.randn(16, 6, generator=torch.Generator().manual_seed(i)), torch.arange(16) % 4) for i in range(4)]


def net(sparse: bool = True) -> nn.Sequential:
    torch.manual_seed(1)
    made = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    if sparse:
        with torch.no_grad():
            for name in NAMES:
                weight = made.get_parameter(name)
                weight.masked_fill_(torch.rand(weight.shape) < 0.7, 0.0)
    return made


def loss(module: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(module(*batch.inputs.args), batch.labels)


def zeros(module: nn.Module) -> dict[str, Tensor]:
    return {n: module.get_parameter(n).detach() == 0 for n in NAMES}


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023: the sign of a mean of gradients; a sign turns the least leak into a full step."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            mean = self.state[p].setdefault("mean", torch.zeros_like(p))
            p.mul_(1 - 0.1 * self.param_groups[0]["lr"])
            p.sub_(self.param_groups[0]["lr"] * (0.9 * mean + 0.1 * p.grad).sign())
            mean.mul_(0.99).add_(p.grad, alpha=0.01)


class Noisy(torch.optim.SGD):
    """Langevin dynamics: what it adds has nothing to do with the gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            p.add_(torch.randn_like(p), alpha=0.01)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "lion": lambda p: Lion(p, lr=0.01),
    "langevin": lambda p: Noisy(p, lr=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_hold_through_every_optimizer(name: str) -> None:
    module = net()
    before, weights = zeros(module), copy.deepcopy(module.state_dict())
    hook = Masked(module, NAMES)
    train(module, loss, BATCHES, steps=12, optimizer=OPTIMIZERS[name], hooks=(hook,), clip=None)
    assert all(torch.equal(before[n], z) for n, z in zeros(module).items())
    assert all(not torch.equal(weights[n], t) for n, t in module.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_zero_there_before_they_are_clipped(precision: str) -> None:
    """Else the length of gradients that nobody uses would shorten the others."""
    module = net()
    gone = zeros(module)
    hook = Masked(module, NAMES)

    class Look:
        def penalty(self, step: int, steps: int) -> None: ...
        def after_step(self, step: int, steps: int) -> None:
            for name in NAMES:
                gradient = module.get_parameter(name).grad
                assert gradient is not None
                assert bool((gradient[gone[name]] == 0).all())
                assert bool((gradient != 0).any())

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None: ...

    train(module, loss, BATCHES, steps=3, hooks=(hook, Look()), precision=precision)


def test_momentum_from_before_does_not_come_back() -> None:
    """In a loop of one's own, with an optimizer that remembers the dense network."""
    module = net(sparse=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(module(BATCHES[0][0]), BATCHES[0][1]).backward()
        optimizer.step()

    step()
    mask = torch.rand(16, 6) < 0.3
    with Masked(module, {"0.weight": mask}) as held:
        held.attach(optimizer)
        buffer = optimizer.state[module[0].weight]["momentum_buffer"]
        assert bool((buffer[~mask] == 0).all())
        average.load_state_dict({**average.state_dict(), "module.0.weight": module[0].weight.detach().clone()})
        for _ in range(3):
            step()
            average.update_parameters(module)
    assert bool((module[0].weight[~mask] == 0).all())
    assert bool((average.module[0].weight[~mask] == 0).all())
    step()
    assert bool((module[0].weight[~mask] != 0).any())


def test_a_mask_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="'9.weight' is no parameter of Sequential"):
        Masked(net(), ("9.weight",))
    with pytest.raises(UsageError, match=r"'0.weight' has shape \(16, 6\), its mask \(6, 16\)"):
        Masked(net(), {"0.weight": torch.ones(6, 16)})


def lowest(name: str, weight: Tensor, way: float) -> Tensor:
    order = weight.abs().flatten().argsort(stable=True)
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[order[: int(0.8 * way * weight.numel() + 1e-9)]] = False
    return mask.reshape(weight.shape)


def test_zeros_come_in_along_the_schedule() -> None:
    module, shares = net(sparse=False), []
    hook = Gradual(module, NAMES, lowest, every=2, until=0.5)

    def on_step(step: int, value: float) -> None:
        shares.append(float(zeros(module)["0.weight"].float().mean()))

    train(module, loss, BATCHES, steps=40, hooks=(hook,), on_step=on_step)
    for step in range(1, 20, 2):
        assert shares[step] == pytest.approx(0.8 * (1 - (1 - (step + 1) / 20) ** 3), abs=1 / 96)
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert len(set(shares[19:])) == 1
    assert shares[-1] == pytest.approx(0.8, abs=1 / 96)


def test_what_is_zero_stays_so_whatever_is_chosen() -> None:
    module = net(sparse=False)
    hook = Gradual(module, NAMES, lambda name, weight, way: torch.rand_like(weight) > 0.1, every=1)
    counts = []
    train(
        module, loss, BATCHES, steps=8, hooks=(hook,), on_step=lambda *_: counts.append(int(hook.masks[NAMES[0]].sum()))
    )
    assert counts[0] > counts[3] > counts[5]
    assert counts[5] == counts[7]


class Rows:
    """Units for RigL: the rows of a weight, or every weight by itself."""

    def __init__(self, shape: tuple[int, int], rows: bool) -> None:
        self.shape, self.rows = shape, rows

    def scores(self, values: Tensor) -> Tensor:
        return values.abs().mean(1) if self.rows else values.abs().flatten()

    def mask(self, kept: Tensor) -> Tensor:
        return kept[:, None].expand(self.shape) if self.rows else kept.reshape(self.shape)


class Watched(RigL):
    """Notes what a change did."""

    changes: list[tuple[Tensor, Tensor, Tensor, Tensor]]

    def after_step(self, step: int, steps: int) -> None:
        before, dense = self.masks["0.weight"].clone(), self._dense.get("0.weight")
        super().after_step(step, steps)
        if dense is not None:
            momentum = next(iter(self._optimizers)).state[self.parameters["0.weight"]]["momentum_buffer"]
            self.changes.append((before, self.masks["0.weight"].clone(), dense.abs(), momentum.clone()))


@pytest.mark.parametrize("rows", [False, True])
def test_rigl_keeps_the_count_and_grows_where_the_gradient_is_large(rows: bool) -> None:
    module = net(sparse=not rows)
    if rows:
        with torch.no_grad():
            module[0].weight[::2] = 0.0
    hook = Watched(module, {"0.weight": Rows((16, 6), rows)}, fraction=0.5, every=3, until=0.9)
    hook.changes = []
    count = int(hook.masks["0.weight"].sum())
    train(module, loss, BATCHES, steps=30, hooks=(hook,))
    assert len(hook.changes) == 8
    assert any(not torch.equal(a, b) for a, b, _, _ in hook.changes)
    for before, after, dense, momentum in hook.changes:
        assert int(after.sum()) == count
        grown = after & ~before
        assert bool((momentum[grown] == 0).all())
        assert bool((momentum[~after] == 0).all())
        score = dense.mean(1, keepdim=True).expand_as(dense) if rows else dense
        if bool(grown.any()):
            assert float(score[grown].min()) >= float(score[~after & ~before].max())
    assert bool((module[0].weight[~hook.masks["0.weight"]] == 0).all())


def test_what_comes_back_at_once_starts_anew_too() -> None:
    module = net()
    optimizer = OPTIMIZERS["adam"](list(module.parameters()))
    hook = RigL(module, {"0.weight": Rows((16, 6), False)}, fraction=1.0, every=1, until=1.0)
    hook.attach(optimizer)
    weight, mask = module[0].weight, hook.masks["0.weight"].clone()
    hook.penalty(0, 1000)
    functional.cross_entropy(module(BATCHES[0][0]), BATCHES[0][1]).backward()
    optimizer.step()
    hook._dense["0.weight"] = mask.float()  # those that stand are asked for most
    assert bool(optimizer.state[weight]["exp_avg"].any())
    hook.after_step(0, 1000)
    assert torch.equal(hook.masks["0.weight"], mask)
    assert int((weight[mask] == 0).sum()) >= int(mask.sum()) - 1
    assert int((optimizer.state[weight]["exp_avg"] != 0).sum()) <= 1


class Stopped(Exception):
    """In place of a crash."""


@pytest.mark.parametrize("kind", ["held", "gradual", "rigl"])
def test_after_a_resume_everything_is_as_if_nothing_had_happened(kind: str, tmp_path: Path) -> None:
    def run(folder: Path, stop: int | None = None) -> nn.Module:
        module = net(sparse=kind != "gradual")
        hooks = {
            "held": lambda: Masked(module, NAMES),
            "gradual": lambda: Gradual(module, NAMES, lowest),
            "rigl": lambda: RigL(module, {n: Rows(tuple(module.get_parameter(n).shape), False) for n in NAMES}),
        }

        def on_step(step: int, value: float) -> None:
            if step == stop:
                raise Stopped

        how: Any = {"optimizer": OPTIMIZERS["adam"], "checkpoint": folder, "check_every": 4, "on_step": on_step}
        train(module, loss, BATCHES, steps=20, hooks=(hooks[kind](),), **how)
        return module

    whole = run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "parts", 10)
    again = run(tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    assert all(bool(z.any()) for z in zeros(again).values())


@pytest.mark.parametrize(
    ("given", "says"), [({"until": 0}, "until=0"), ({"every": 0}, "every=0"), ({"fraction": 2}, "fraction=2")]
)
def test_settings_that_mean_nothing_are_refused(given: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        RigL(net(), {"0.weight": Rows((16, 6), False)}, **given)
