"""What was seen of a network on calibration batches, for criteria to look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Evidence:
    """By parameter name, from which axes pick their positions; what no criterion asked for is empty.

    `gradients`: one mapping per batch. `inputs`: in the shape of the weight, the root mean square of what each entry is
    multiplied with. `activations`: (inputs of the contraction, samples, rows, columns), by its weight. `gates`:
    (inputs, samples), likewise. `scales`: names of the factors of batch norms. `losses`: (positions,) by axis id.
    """

    gradients: Iterable[Mapping[str, torch.Tensor]] = ()
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    activations: Mapping[str, torch.Tensor] = field(default_factory=dict)
    gates: Mapping[str, torch.Tensor] = field(default_factory=dict)
    scales: frozenset[str] = frozenset()
    losses: Mapping[str, torch.Tensor] = field(default_factory=dict)
