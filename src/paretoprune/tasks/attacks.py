"""Inputs made to be misjudged, within `eps` of the original in every entry.

The gradients come from a private copy of a torch module: the caller's weights, gradients, mode and random state stay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paretoprune.core.errors import DataError
from paretoprune.core.graph import Example
from paretoprune.core.protocols import Task
from paretoprune.tasks.one_input import disturbable, replaced

PGD_STEPS = 10
PGD_STRIDE = 2.5
"""A step is this × eps / steps, so that the far side of the ball can be reached (Madry et al., section 5)."""


@dataclass(frozen=True)
class Attack:
    """`eps`: largest change of an entry, in the input's own units; results stay within [`low`, `high`].

    `module` is called and differentiated as it is: make one with `on`, which takes a private copy.
    """

    module: nn.Module
    task: Task
    eps: float
    low: float
    high: float
    made: torch.Generator

    @classmethod
    def on(cls, module: nn.Module, task: Task, eps: float, low: float, high: float, seed: int = 0) -> Attack:
        frozen = copy.deepcopy(module).eval()
        for parameter in frozen.parameters():
            parameter.requires_grad_(False)
        return cls(frozen, task, eps, low, high, torch.Generator().manual_seed(seed))

    def gradient(self, inputs: Example, at: Tensor, labels: Any) -> tuple[Tensor, Any]:
        """(gradient of the task's loss with respect to the input at `at`, the network's output there)."""
        point = at.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            given = replaced(inputs, point)
            output = self.module(*given.args, **given.kwargs)
            loss = self.task.loss(output, labels)
            if not loss.requires_grad:
                raise DataError(
                    "the loss does not depend on the input in a way that has a gradient: no attack is possible"
                )
            (slope,) = torch.autograd.grad(loss, point)
        return slope.detach().nan_to_num(), output

    def output(self, inputs: Example, at: Tensor) -> Any:
        with torch.no_grad():
            given = replaced(inputs, at)
            return self.module(*given.args, **given.kwargs)

    def within(self, moved: Tensor, clean: Tensor) -> Tensor:
        """Back into the ball around `clean`, then into the input's range; a clean value outside it may stay."""
        near = torch.minimum(torch.maximum(moved, _edge(clean, -self.eps)), _edge(clean, self.eps))
        return torch.minimum(torch.maximum(near, clean.clamp(max=self.low)), clean.clamp(min=self.high))


def _edge(clean: Tensor, step: float) -> Tensor:
    """`clean` + `step` in its own type, never farther: adding rounds, and could pass the edge by one number."""
    exact = clean.double() + step
    near = exact.to(clean.dtype)
    beyond = (near.double() - clean.double()).abs() > abs(step)
    return torch.where(beyond, torch.nextafter(near, clean), near)


def fgsm(attack: Attack, inputs: Example, labels: Any) -> Example:
    """x + eps · sign(∇ₓ loss): Goodfellow et al., "Explaining and harnessing adversarial examples" (ICLR 2015)."""
    clean = disturbable(inputs, "fgsm").detach()
    slope, _ = attack.gradient(inputs, clean, labels)
    return replaced(inputs, attack.within(clean + attack.eps * slope.sign(), clean))


def pgd(attack: Attack, inputs: Example, labels: Any) -> Example:
    """Projected steps of sign(∇ₓ loss) from a random start in the ball: Madry et al., "Towards deep learning models
    resistant to adversarial attacks" (ICLR 2018). Of each sample the point with the lowest score is kept.
    """
    clean = disturbable(inputs, "pgd").detach()
    noise = torch.rand(clean.shape, generator=attack.made, dtype=torch.float32).to(clean) * 2 - 1
    point = attack.within(clean + attack.eps * noise, clean)
    worst, lowest = point, torch.full((len(clean),), torch.inf)
    for _ in range(PGD_STEPS):
        slope, output = attack.gradient(inputs, point, labels)
        worst, lowest = _worse(attack, point, output, labels, worst, lowest)
        step = PGD_STRIDE * attack.eps / PGD_STEPS
        point = attack.within(point + step * slope.sign(), clean)
    worst, _ = _worse(attack, point, attack.output(inputs, point), labels, worst, lowest)
    return replaced(inputs, worst)


def _worse(
    attack: Attack, point: Tensor, output: Any, labels: Any, worst: Tensor, lowest: Tensor
) -> tuple[Tensor, Tensor]:
    """`point` where its score is not above the lowest so far: of equals the later one, which has the larger loss."""
    with torch.no_grad():
        score = attack.task.correct(output, labels).detach().cpu().to(lowest)
    better = score <= lowest
    mask = better.to(point.device).reshape(-1, *[1] * (point.ndim - 1))
    return torch.where(mask, point, worst), torch.where(better, score, lowest)


ATTACKS: dict[str, Callable[[Attack, Example, Any], Example]] = {"fgsm": fgsm, "pgd": pgd}
