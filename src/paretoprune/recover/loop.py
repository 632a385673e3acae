"""One training under way: a step, a check, and the state that the steps to come depend on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from paretoprune.core.errors import DataError, PruneError, UsageError
from paretoprune.core.protocols import TrainingHook
from paretoprune.recover.inputs import Batch
from paretoprune.recover.optimizing import first_lr
from paretoprune.recover.precision import Mixed
from paretoprune.recover.randomness import Stream, random_state, set_random_state
from paretoprune.recover.resume import Checkpoint, tensors_by_name

Loss = Callable[[nn.Module, Batch], Tensor]
"""Of a batch on the network's device: a scalar that gradients are taken of."""
Validate = Callable[[nn.Module], float]
"""Of the network in eval mode, without gradients: larger is better."""
OnStep = Callable[[int, float], None]
LAST = 10


@dataclass(frozen=True)
class Trained:
    """`loss`: mean of the last ten steps. `validations`: (steps taken, value) of every check."""

    loss: float
    steps: int
    validations: tuple[tuple[int, float], ...] = ()


@dataclass
class Progress:
    """What a resumed run has to know besides weights and states."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    waited: int = 0
    best: float = -math.inf


@dataclass
class Run:
    module: nn.Module
    loss: Loss
    stream: Stream
    parameters: list[nn.Parameter]
    optimizer: Optimizer
    scheduler: LRScheduler
    hooks: Sequence[TrainingHook]
    mixed: Mixed
    steps: int
    clip: float | None
    name: str
    validate: Validate | None
    patience: int | None
    check_every: int
    progress: Progress = field(default_factory=Progress)
    kept: dict[str, Tensor] | None = None
    """The weights of the best check, with patience."""

    def settings(self) -> dict[str, Any]:
        """What tells one training from another."""
        groups = [{k: repr(v) for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        kinds = [type(part).__qualname__ for part in (self.optimizer, self.scheduler, *self.hooks)]
        return {
            "parts": kinds,
            "groups": groups,
            "clip": self.clip,
            "patience": self.patience,
            "check": self.check_every,
        }

    def all(self, saved: Checkpoint | None, on_step: OnStep | None) -> Trained:
        state = None if saved is None else saved.read()
        if state is not None:
            self.load_state_dict(state)
        now = self.progress
        while now.step < self.steps and not self.stopped:
            value = self._step(now.step)
            now.losses = [*now.losses, value][-LAST:]
            now.step += 1
            if on_step is not None:
                on_step(now.step - 1, value)
            if now.step % self.check_every == 0 or now.step == self.steps:
                self._validate()
                if saved is not None:
                    saved.write(now.step, self.state_dict())
        return self._end()

    @property
    def stopped(self) -> bool:
        return self.patience is not None and self.progress.waited >= self.patience

    def _step(self, step: int) -> float:
        """One batch; the loss with all penalties."""
        batch = self.stream.next().to(self.mixed.place)
        value = math.nan

        def closure() -> float:
            nonlocal value
            self.optimizer.zero_grad(set_to_none=True)
            value = self._backward(batch, step)
            return value

        if isinstance(self.optimizer, LBFGS):
            self.optimizer.step(closure)  # type: ignore[no-untyped-call]
            stepped = True
        else:
            closure()
            stepped = self.mixed.step(self.optimizer)
        for hook in self.hooks:
            hook.after_step(step, self.steps)
        if stepped and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        return value

    def _backward(self, batch: Batch, step: int) -> float:
        loss = self._loss(batch, step)
        for hook in self.hooks:
            penalty = hook.penalty(step, self.steps)
            loss = loss if penalty is None else loss + penalty
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._not_finite(f"the loss is {value}", step)
        self.mixed.backward(loss, self.optimizer)
        length = float(nn.utils.clip_grad_norm_(self.parameters, math.inf if self.clip is None else self.clip))
        if not math.isfinite(length) and self.mixed.scaler is None:
            raise self._not_finite(f"the gradient is {length}", step)
        return value

    def _loss(self, batch: Batch, step: int) -> Tensor:
        with self._explained(), self.mixed.autocast():
            loss = self.loss(self.module, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise UsageError(
                f"{self.name}: the loss of step {step} is no scalar tensor that depends on the parameters (it is "
                f"{what}): return a mean over the batch, and do not detach it"
            )
        return loss.reshape(())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise DataError(
                f"{self.name}: batch norm needs batches of at least 2 samples; drop or enlarge them"
            ) from error

    def _not_finite(self, what: str, step: int) -> PruneError:
        lr = first_lr(self.optimizer)
        return PruneError(f"{self.name}: {what} at step {step}; lower lr={lr:g} or check the batches")

    def _validate(self) -> None:
        if self.validate is None:
            return
        before = random_state(self.mixed.place)
        self.module.eval()
        with torch.no_grad():
            value = float(self.validate(self.module))
        self.module.train()
        set_random_state(before, self.mixed.place)
        if math.isnan(value):
            raise PruneError(
                f"{self.name}: validate() gave nan after {self.progress.step} steps; check it, or lower lr"
            )
        self.progress.validations.append((self.progress.step, value))
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(value)
        if self.patience is None:
            return
        better = value > self.progress.best
        self.progress.waited = 0 if better else self.progress.waited + 1
        if better:
            self.progress.best = value
            self.kept = {n: t.detach().clone() for n, t in tensors_by_name(self.module).items()}

    def _end(self) -> Trained:
        now = self.progress
        self.optimizer.zero_grad(set_to_none=True)
        if self.kept is not None:
            put(self.module, self.kept)
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters):
            lr = first_lr(self.optimizer)
            raise PruneError(f"{self.name}: the weights are not finite after {now.step} steps; lower lr={lr:g}")
        return Trained(sum(now.losses) / len(now.losses), now.step, tuple(now.validations))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the steps to come depend on."""
        return {
            "network": tensors_by_name(self.module),
            "kept": self.kept,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "precision": self.mixed.state_dict(),
            "hooks": [hook.state_dict() for hook in self.hooks],
            "random": random_state(self.mixed.place),
            "progress": dict(vars(self.progress)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there: the batches that were used are read again, without training on them."""
        self.progress = Progress(**state["progress"])
        self.stream.skip(self.progress.step)
        put(self.module, state["network"])
        place = self.mixed.place
        self.kept = None if state["kept"] is None else {n: t.to(place) for n, t in state["kept"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.mixed.load_state_dict(state["precision"])
        for hook, held in zip(self.hooks, state["hooks"], strict=True):
            hook.load_state_dict(held)
        set_random_state(state["random"], place)


def put(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Values by name into parameters and buffers."""
    with torch.no_grad():
        for name, tensor in tensors_by_name(module).items():
            tensor.copy_(tensors[name])
