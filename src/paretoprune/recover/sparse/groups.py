"""The positions of axes as groups of a module's own parameters: their norms, and scaling them where they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from paretoprune.core.axis import Axis, AxisMember
from paretoprune.core.errors import ModelError, UsageError

Side = Literal["makers", "readers", "all"]
"""Of a position: what makes it and follows it (filters, biases, batch norm), what sums over it, or everything."""


@dataclass(frozen=True)
class Place:
    """One dimension of one parameter in which an axis stands; `entries` (positions, repeats) as in AxisMember."""

    name: str
    parameter: nn.Parameter
    dim: int
    entries: Tensor

    def squares(self) -> Tensor:
        """(positions,): the sum of squares of what stands at each position, in at least single precision."""
        values = self.parameter.detach()
        values = values if values.dtype == torch.float64 else values.float()
        others = [d for d in range(values.ndim) if d != self.dim]
        along = values.square().sum(others) if others else values.square()
        return along[self.entries.to(along.device)].sum(1)

    def along(self, factors: Tensor) -> Tensor:
        """One factor per position as a tensor that multiplies the parameter; 1 where the axis does not stand."""
        factors = factors.to(self.parameter.device, self.parameter.dtype)
        line = factors.new_ones(self.parameter.shape[self.dim])
        index = self.entries.reshape(-1).to(line.device)
        line = line.index_put((index,), factors.repeat_interleave(self.entries.shape[1]))
        return line.reshape([-1 if d == self.dim else 1 for d in range(self.parameter.ndim)])


class Groups:
    """The positions of `axes` in the parameters of `module`, found by name: any module that has these names will do.

    "makers" of an axis are its parameters that make it or only follow it; where there are none, all. For a plain chain
    of layers the makers of different axes do not overlap. "readers" are what sums over it, and matrices that follow it
    (recurrent weights); where there are none, its makers: with every reader zero, nothing behind sees the position.
    Buffers are left out. Raises UsageError for no axes, ModelError for a missing or a frozen parameter.
    """

    def __init__(self, module: nn.Module, axes: Iterable[Axis]) -> None:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
        self.sizes: dict[str, int] = {}
        self._sides: dict[str, Mapping[Side, Sequence[Place]]] = {}
        for axis in axes:
            members = [m for m in axis.members if m.name not in buffers]
            places = [(_place(axis.id, m, parameters), m) for m in members]
            self.sizes[axis.id] = axis.size
            self._sides[axis.id] = _sides(axis.id, places)
        if not self.sizes:
            raise UsageError("no axis was given: there is nothing to train towards zero")

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    def places(self, axis: str, side: Side = "all") -> Sequence[Place]:
        return self._sides[axis][side]

    def norms(self, axis: str, side: Side = "makers") -> Tensor:
        """(positions,) on the CPU: the L2 norm of everything on that side. Raises ModelError if one is not finite."""
        places = self.places(axis, side)
        total = torch.stack([place.squares().double().cpu() for place in places]).sum(0)
        if not bool(torch.isfinite(total).all()):
            raise ModelError(f"the weights of axis '{axis}' are not finite: lower the learning rate")
        return total.sqrt()

    def scale_(self, axis: str, factors: Tensor, side: Side = "makers") -> None:
        """Multiply what stands at each position by its factor, in place."""
        with torch.no_grad():
            for place in self.places(axis, side):
                place.parameter.mul_(place.along(factors))

    def zero_(self, axis: str, positions: Sequence[int], side: Side = "all") -> None:
        """Set what stands at these positions to zero, in place, whatever it was."""
        with torch.no_grad():
            for place in self.places(axis, side):
                index = place.entries[list(positions)].reshape(-1).to(place.parameter.device)
                place.parameter.index_fill_(place.dim, index, 0.0)


def _place(axis: str, member: AxisMember, parameters: Mapping[str, nn.Parameter]) -> Place:
    parameter = parameters.get(member.name)
    if parameter is None:
        raise ModelError(
            f"axis '{axis}' stands in '{member.name}', which is no parameter of the module: fold reparametrised "
            "weights first (torch.nn.utils.parametrize.remove_parametrizations), or leave the axis out"
        )
    if not parameter.requires_grad:
        raise ModelError(
            f"axis '{axis}' stands in '{member.name}', which is frozen (requires_grad=False) and stays as it is: "
            "leave the axis out, or let the parameter train"
        )
    return Place(member.name, parameter, member.dim, torch.from_numpy(member.entries))


def _sides(axis: str, places: Sequence[tuple[Place, AxisMember]]) -> dict[Side, Sequence[Place]]:
    if not places:
        raise ModelError(f"axis '{axis}' stands in no parameter: leave it out")
    every = [place for place, _ in places]
    makers = [p for p, m in places if m.role != "in"] or every
    readers = [p for p, m in places if m.role == "in" or (m.role == "each" and p.parameter.ndim > 1)] or makers
    return {"all": every, "makers": makers, "readers": readers}
