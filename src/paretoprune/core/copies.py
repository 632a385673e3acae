"""Deep copies of networks."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import nn

M = TypeVar("M", bound="nn.Module")


def duplicate(module: M) -> M:
    """A deep copy. torch's warning on its own specs of inputs, which a graph with named inputs holds, is not shown."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        return copy.deepcopy(module)
