"""Activations inside the student that should be the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paretoprune.core.errors import PruneError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.outputs import main_output
from paretoprune.recover.inputs import Batch
from paretoprune.recover.losses import SoftTargets, run, silent

Look = Callable[[nn.Module, Example, Sequence[str], bool], tuple[Any, Mapping[str, Tensor]]]
"""`look(module, inputs, places, whole)`: (output, activation by place); unless whole, the output may be None."""
Select = Callable[[str, Tensor], Tensor]
"""`select(place, teacher's activation)`: its positions that the student kept."""


@dataclass(frozen=True)
class Hidden:
    """weight · the mean over the places of ‖s - t‖² / ‖t‖², plus the soft targets' loss where `soft` is given.

    FitNets (Romero et al. 2015, eq. 3) with the teacher's activation cut to the positions that the student kept in
    place of a learned regressor, and relative, so that no place outweighs another by its scale.
    """

    teacher: nn.Module
    places: tuple[str, ...]
    look: Look
    select: Select
    weight: float = 1.0
    soft: SoftTargets | None = None

    def __call__(self, student: nn.Module, batch: Batch) -> Tensor:
        whole = self.soft is not None
        output, given = self.look(student, batch.inputs, self.places, whole)
        with silent(batch.inputs):
            answer, wanted = self.look(self.teacher, batch.inputs, self.places, whole)
        parts = [self._error(place, given, wanted) for place in self.places]
        loss = self.weight * torch.stack(parts).mean()
        if self.soft is None:
            return loss
        return loss + self.soft.compare(output, main_output(answer), batch.labels)

    def _error(self, place: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        if place not in given or place not in wanted:
            raise UsageError(f"{place!r} gave no tensor in this run of the network")
        mine, right = given[place].float(), self.select(place, wanted[place]).float()
        if mine.shape != right.shape:
            raise PruneError(f"at {place!r} the student has {tuple(mine.shape)}, the teacher {tuple(right.shape)}")
        return (mine - right).square().sum() / right.square().sum().clamp_min(torch.finfo(right.dtype).tiny)


def look_by_module(
    module: nn.Module, inputs: Example, places: Sequence[str], whole: bool
) -> tuple[Any, dict[str, Tensor]]:
    """What the submodules of these names give, by forward hooks that are gone afterwards."""
    del whole
    found: dict[str, Tensor] = {}
    parts = dict(module.named_modules())
    missing = [p for p in places if p not in parts]
    if missing:
        raise UsageError(f"{type(module).__name__} has no submodule {missing[0]!r}: name submodules of both networks")

    def keep(place: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            found[place] = main_output(output)

        return hook

    handles = [parts[p].register_forward_hook(keep(p)) for p in places]
    try:
        return run(module, inputs), found
    finally:
        for handle in handles:
            handle.remove()
