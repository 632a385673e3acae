"""The one floating-point input of a batch, which is what can be disturbed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from paretoprune.core.data import split_batch
from paretoprune.core.errors import DataError
from paretoprune.core.graph import Example

RANGE_BATCHES = 8
"""Batches that the range of the input is read from."""


def disturbable(inputs: Example, how: str) -> Tensor:
    """The only floating-point tensor of `inputs`. Raises DataError that names what was asked for and what is there."""
    found = [(name, t) for name, t in inputs.tensors() if isinstance(t, Tensor) and t.is_floating_point()]
    if len(found) == 1:
        return found[0][1]
    there = ", ".join(f"{name} {t.dtype}" for name, t in inputs.tensors())
    raise DataError(
        f"robust accuracy ({how}) disturbs one floating-point input; the network has {len(found)} of them ({there}): "
        "leave this metric out"
    )


def image(inputs: Example, how: str) -> Tensor:
    """The same, of shape (samples, channels, height, width)."""
    tensor = disturbable(inputs, how)
    if tensor.ndim != 4:
        raise DataError(
            f"robust accuracy ({how}) is for images, (samples, channels, height, width); the input has shape "
            f"{tuple(tensor.shape)}: leave this metric out"
        )
    return tensor


def check_shift(inputs: Example, how: str) -> None:
    """Raise DataError where `how` cannot be done to such inputs."""
    (image if how in ("blur", "contrast") else disturbable)(inputs, how)


def replaced(inputs: Example, tensor: Tensor) -> Example:
    """`inputs` with its floating-point input replaced; nothing given is changed."""

    def put(leaf: Any) -> Any:
        return tensor if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    args, kwargs = pytree.tree_map(put, (inputs.args, dict(inputs.kwargs)))
    return Example(args, kwargs, inputs.per_sample)


def input_range(batches: Iterable[Any]) -> tuple[float, float]:
    """(smallest, largest) value of the input in the first batches. Raises DataError where there is none."""
    lows, highs = [], []
    for batch in islice(batches, RANGE_BATCHES):
        tensor = disturbable(split_batch(batch)[0], "any")
        if tensor.numel():
            lows.append(float(tensor.min()))
            highs.append(float(tensor.max()))
    if not lows:
        raise DataError("no samples to read the range of the input from: the set is empty")
    return min(lows), max(highs)
