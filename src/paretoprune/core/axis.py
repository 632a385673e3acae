"""What can be removed: an axis, and where its positions stand in the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Role = Literal["out", "in", "each"]
"""How a parameter uses an axis: makes it (filters, their bias), sums over it, or only follows it (batch norm)."""


INNER_KINDS = frozenset({"channel", "heads", "kv groups", "rnn hidden"})
"""What `axes="inner"` prunes: nothing that the residual stream, an embedding or every head has to agree on."""


@dataclass(frozen=True)
class AxisMember:
    """One dimension of one parameter or buffer in which an axis stands.

    `entries` has shape (positions, repeats): the indices along `dim` that vanish with each position.
    """

    name: str
    dim: int
    role: Role
    entries: NDArray[np.int64] = field(repr=False, compare=False)

    def view(self, tensor: torch.Tensor, positions: slice = slice(None)) -> torch.Tensor:
        """`tensor` as a matrix (positions, rest), or the rows of some positions of it. A copy."""
        import torch

        entries = self.entries[positions]
        index = torch.from_numpy(entries.reshape(-1)).to(tensor.device)
        taken = tensor.detach().index_select(self.dim, index).movedim(self.dim, 0)
        return taken.reshape(entries.shape[0], -1)


@dataclass(frozen=True)
class Axis:
    """An atomic run of positions, for instance the 64 filters of a convolution.

    `why` says in plain words why the axis is frozen; it is empty when `prunable`.
    `kind` says which axis of a product it is, or what carries it: "channel" (inner channels, hidden units), "heads",
    "kv groups" (query heads that share keys and values), "query heads" (within such a group), "head size", "rotary
    pairs", "rnn hidden", "experts", "residual" (carried by `x + f(x)`), "embedding" (its width), "within" (another
    inner factor, e.g. the channels within a group) or "frozen".
    """

    id: str
    size: int
    prunable: bool
    why: str
    kind: str
    members: tuple[AxisMember, ...] = field(repr=False)


@dataclass(frozen=True)
class Scores:
    """Importance of every position, by axis id: arrays of shape (positions,), larger is more important."""

    by_axis: Mapping[str, NDArray[np.float64]]
    criterion: str
