"""From a call's inputs to a runtime's named arrays, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from paretoprune.core.errors import DataError
from paretoprune.core.graph import Example

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Signature:
    """How a call's tensors are named and put back into positional and keyword arguments.

    `batched[i]` tells whether dimension 0 of tensor i is the batch.
    """

    names: tuple[str, ...]
    batched: tuple[bool, ...]
    leaves: tuple[Any, ...]
    places: tuple[int, ...]
    spec: pytree.TreeSpec

    def arguments(self, tensors: Iterable[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) with the tensors in their places."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs


def signature_of(example: Example) -> tuple[Signature, list[torch.Tensor]]:
    """(signature, tensors) of an example. Raises DataError for an example without a tensor or a batch."""
    names = _unique(name for name, _ in example.tensors())
    leaves, spec = pytree.tree_flatten((tuple(example.args), dict(example.kwargs)))
    places = tuple(i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape"))
    tensors = [torch.as_tensor(leaves[i]).detach() for i in places]
    if meta := [name for name, tensor in zip(names, tensors, strict=True) if tensor.is_meta]:
        raise DataError(f"{meta[0]} is on the meta device, without values: give an example on the network's device")
    sizes = [t.shape[0] for t in tensors if t.dim()]
    if not sizes or sizes[0] == 0:
        raise DataError("the example holds no tensor with a batch dimension (dimension 0); give one batch of inputs")
    batched = tuple(t.dim() > 0 and t.shape[0] == sizes[0] for t in tensors)
    return Signature(tuple(names), batched, tuple(leaves), places, spec), tensors


def _unique(names: Iterable[str]) -> list[str]:
    """Names with "_1", "_2" … where several tensors of one argument share one."""
    given: list[str] = []
    for name in names:
        number, candidate = 0, name
        while candidate in given:
            number += 1
            candidate = f"{name}_{number}"
        given.append(candidate)
    return given


def feed_of(example: Example) -> dict[str, NDArray[Any]]:
    """The arrays of an example by the names that an exported file gives its inputs."""
    signature, tensors = signature_of(example)
    return {name: array_of(tensor) for name, tensor in zip(signature.names, tensors, strict=True)}


def array_of(tensor: torch.Tensor) -> NDArray[Any]:
    """bfloat16, which numpy lacks, becomes float32, which holds it exactly."""
    tensor = tensor.detach().cpu()
    return np.ascontiguousarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def resized(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    """The same rows, taken again or left out, so that dimension 0 is `batch`."""
    return tensor.index_select(0, torch.arange(batch, device=tensor.device) % tensor.shape[0])


def randomised(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Fresh values like the example's: same mean, spread and range; integers within the example's range."""
    if tensor.dtype == torch.bool:
        return (torch.rand(tensor.shape, generator=generator) < 0.5).to(tensor.device)
    if tensor.numel() == 0:
        return tensor
    low, high = tensor.min(), tensor.max()
    if not tensor.is_floating_point():
        values = torch.randint(int(low), int(high) + 1, tensor.shape, generator=generator)
        return values.to(tensor.dtype).to(tensor.device)
    noise = torch.randn(tensor.shape, generator=generator).to(tensor)
    if low == high:
        return tensor + noise
    return (tensor.mean() + noise * tensor.std(correction=0)).clamp(low, high)


def slices(feeds: Iterable[Feed], rows: int, samples: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Feeds cut to `rows` rows each, until `samples` rows were given. Arrays without the batch dimension are kept."""
    given = 0
    for feed in feeds:
        sizes = [array.shape[0] for array in feed.values() if array.ndim]
        batch = sizes[0] if sizes else 0
        for start in range(0, batch, rows):
            if given >= samples:
                return
            stop = min(start + rows, batch, start + samples - given)
            given += stop - start
            yield {k: v[start:stop] if v.ndim and v.shape[0] == batch else v for k, v in feed.items()}
        if given >= samples:
            return
