"""Accuracy on disturbed inputs, as the file that is judged answers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paretoprune.core.data import batch_size
from paretoprune.core.errors import UsageError
from paretoprune.core.graph import Example
from paretoprune.core.measurement import Measurement
from paretoprune.core.protocols import Task
from paretoprune.tasks.attacks import ATTACKS, PGD_STEPS, Attack
from paretoprune.tasks.corruptions import CORRUPTIONS, SAID, Sensor
from paretoprune.tasks.evaluate import as_torch, wilson

SAMPLES = 256
EPS = 8 / 255


@dataclass(frozen=True)
class Shifting:
    """How inputs are disturbed. `how`: names of attacks and corruptions. `eps`: largest change by an attack, as a
    share of the input's range [`low`, `high`]. `samples`: the first so many of a set are disturbed, at least.
    """

    how: Sequence[str]
    low: float
    high: float
    eps: float = EPS
    samples: int = SAMPLES
    seed: int = 0

    @property
    def step(self) -> float:
        """`eps` in the input's own units."""
        return self.eps * (self.high - self.low)


class Robustness:
    """Watches a pass over batches and asks `predict` again, about the same samples disturbed.

    `module` gives the gradients for attacks; it may stand for a file of another precision, which is then attacked with
    the examples of its fp32 network.
    """

    def __init__(
        self,
        predict: Callable[[Example], Any],
        task: Task,
        shifting: Shifting,
        module: Callable[[], nn.Module] | None = None,
    ) -> None:
        self._predict, self._task, self._shifting = predict, task, shifting
        self._moves = {how: self._move(how, module) for how in shifting.how}
        self._right = dict.fromkeys(shifting.how, 0.0)
        self._seen = 0

    def _move(self, how: str, module: Callable[[], nn.Module] | None) -> Callable[[Example, Any], Example]:
        """(inputs, labels) -> inputs disturbed in this way; each draws from its own seeded numbers."""
        one = self._shifting
        if how in CORRUPTIONS:
            sensor = Sensor(one.low, one.high, torch.Generator().manual_seed(one.seed))
            return lambda inputs, labels: CORRUPTIONS[how](sensor, inputs)
        if module is None:
            raise UsageError(f"robust accuracy ({how}) needs gradients: give a torch module, not a file alone")
        attack = Attack.on(module(), self._task, one.step, one.low, one.high, one.seed)
        return lambda inputs, labels: ATTACKS[how](attack, inputs, labels)

    def __call__(self, inputs: Example, output: Any, labels: Any, scores: Tensor) -> None:
        left = self._shifting.samples - self._seen
        if left <= 0 or not len(scores):
            return
        inputs, labels = _first(inputs, labels, left)
        del output
        for how, move in self._moves.items():
            moved = move(inputs, labels)
            with torch.no_grad():
                found = self._task.correct(as_torch(self._predict(moved)), labels)
            self._right[how] += float(found.double().sum())
        self._seen += batch_size(inputs)

    def figures(self) -> dict[str, Measurement]:
        """{"robust_<how>"}: shares with Wilson intervals; notes state what was done."""
        if not self._seen:
            return {}
        found = {}
        for how, right in self._right.items():
            share = right / self._seen
            low, high = wilson(share, self._seen)
            found[f"robust_{how}"] = Measurement(share, low, high, self._seen, "share", note=self._said(how))
        return found

    def _said(self, how: str) -> str:
        samples = f"{self._seen} samples"
        if how in CORRUPTIONS:
            return f"{SAID[how]}; {samples}"
        one = self._shifting
        steps = f", {PGD_STEPS} steps" if how == "pgd" else ""
        return f"eps {_share(one.eps)} of the input's range, {one.step:.3g} in its units{steps}; {samples}"


def _share(eps: float) -> str:
    """8/255 as it is usually written."""
    near = Fraction(eps).limit_denominator(255)
    return str(near) if abs(float(near) - eps) < 1e-12 else f"{eps:.3g}"


def _first(inputs: Example, labels: Any, samples: int) -> tuple[Example, Any]:
    """The first samples; the whole batch where some tensor does not hold one row for each."""
    leaves, spec = pytree.tree_flatten((inputs.args, dict(inputs.kwargs), labels))
    size = batch_size(inputs)
    if not all(isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size for leaf in leaves):
        return inputs, labels
    args, kwargs, given = pytree.tree_unflatten([leaf[:samples] for leaf in leaves], spec)
    return Example(args, kwargs, inputs.per_sample), given
