"""What a method of sparse training is, and the last part of the training that all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from paretoprune.core.errors import UsageError
from paretoprune.core.protocols import TrainingHook
from paretoprune.recover.sparse.groups import Groups


class SparseMethod(TrainingHook, Protocol):
    """A hook that drives positions towards zero and says which ones matter."""

    def scores(self) -> Mapping[str, Tensor]:
        """By axis id (positions,), larger is kept."""
        ...

    def settle(self, removed: Mapping[str, Sequence[int]]) -> None:
        """The choice is made: these positions go, and the method acts no more."""
        ...


def check_strength(strength: float) -> float:
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength < float("inf"):
        raise UsageError(f"strength={strength!r}: give a finite number above 0")
    return float(strength)


def lowest(scores: Tensor, count: int) -> list[int]:
    """The `count` positions of the lowest score, ties by position, ascending."""
    return sorted(torch.argsort(scores, stable=True)[:count].tolist())


class Held:
    """Positions that stay zero, whatever the optimizer's momentum or weight decay does to them."""

    def __init__(self, groups: Groups, removed: Mapping[str, Sequence[int]]) -> None:
        self.groups = groups
        self.removed = {axis: tuple(positions) for axis, positions in removed.items()}
        self.hold()

    def hold(self) -> None:
        for axis, positions in self.removed.items():
            self.groups.zero_(axis, positions)

    def penalty(self, step: int, steps: int) -> Tensor | None:
        return None

    def after_step(self, step: int, steps: int) -> None:
        self.hold()

    def state_dict(self) -> dict[str, Any]:
        return {axis: torch.tensor(positions, dtype=torch.int64) for axis, positions in self.removed.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.removed = {axis: tuple(positions.tolist()) for axis, positions in state.items()}
        self.hold()


class Settling:
    """A method for the first part of the training; then its lowest positions are zeroed and the rest trains on.

    The last `share` of the steps trains the network that is left, as a lasso is refitted on its support (Meinshausen
    2007, "Relaxed Lasso"): everything of a chosen position is zero after every step, so that taking it out changes
    nothing. `counts`: how many positions of each axis go.
    """

    def __init__(self, method: SparseMethod, groups: Groups, counts: Mapping[str, int], share: float = 0.5) -> None:
        if not 0 <= share < 1:
            raise UsageError(f"settle={share!r}: give the share of the steps after the choice, from 0 to below 1")
        for axis, count in counts.items():
            if axis not in groups.sizes or not 0 <= count < groups.sizes[axis]:
                size = groups.sizes.get(axis, 0)
                raise UsageError(f"{count} positions of axis '{axis}' (of {size}) cannot go: at least one must stay")
        self.method, self.groups, self.counts, self.share = method, groups, dict(counts), share
        self.held: Held | None = None

    def before(self, steps: int) -> int:
        """Steps of the first part, at least 1."""
        return max(1, steps - round(self.share * steps))

    def penalty(self, step: int, steps: int) -> Tensor | None:
        return self.method.penalty(step, self.before(steps)) if self.held is None else None

    def after_step(self, step: int, steps: int) -> None:
        first = self.before(steps)
        if self.held is not None:
            self.held.after_step(step, steps)
            return
        self.method.after_step(step, first)
        if step >= first - 1:
            self._choose()

    def _choose(self) -> None:
        scores = self.method.scores()
        self._settle({axis: lowest(scores[axis], count) for axis, count in self.counts.items() if count})

    def _settle(self, removed: Mapping[str, Sequence[int]]) -> None:
        self.method.settle(removed)
        self.held = Held(self.groups, removed)

    @property
    def removed(self) -> dict[str, tuple[int, ...]]:
        """What was chosen; empty before."""
        return {} if self.held is None else dict(self.held.removed)

    def state_dict(self) -> dict[str, Any]:
        state = {f"method.{key}": value for key, value in self.method.state_dict().items()}
        held = {} if self.held is None else self.held.state_dict()
        return {"settled": self.held is not None, **state, **{f"held.{axis}": v for axis, v in held.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.method.load_state_dict(_below("method.", state))
        self.held = None
        if state["settled"]:
            self._settle({axis: positions.tolist() for axis, positions in _below("held.", state).items()})


def _below(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
