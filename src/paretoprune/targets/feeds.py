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

    `batched[i]` tells whether dimension 0 of tensor i is the batch, `moving[i]` which other dimensions are dynamic.
    """

    names: tuple[str, ...]
    batched: tuple[bool, ...]
    leaves: tuple[Any, ...]
    places: tuple[int, ...]
    spec: pytree.TreeSpec
    moving: tuple[tuple[int, ...], ...] = ()

    def arguments(self, tensors: Iterable[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) with the tensors in their places."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs

    def shifted(self, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """With one entry less along every dynamic dimension but the batch (one more where there are two or fewer)."""
        found = []
        for tensor, dims in zip(tensors, self.moving, strict=True):
            for dim in dims:
                size = tensor.shape[dim]
                tensor = resized(tensor, size - 1 if size > 2 else size + 1, dim)
            found.append(tensor)
        return found


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
    return Signature(tuple(names), batched, tuple(leaves), places, spec, _moving(example, names, tensors)), tensors


def _moving(example: Example, names: list[str], tensors: list[torch.Tensor]) -> tuple[tuple[int, ...], ...]:
    for name, dims in example.dynamic.items():
        if name not in names:
            raise DataError(f"dynamic names {name!r}, but the inputs are {', '.join(names)}")
        ndim = tensors[names.index(name)].dim()
        if wrong := [d for d in dims if not -ndim <= d < ndim]:
            raise DataError(f"dynamic names dimension {wrong[0]} of {name!r}, which has {ndim}")
    given = zip(names, tensors, strict=True)
    return tuple(tuple(sorted({d % t.dim() for d in example.dynamic.get(n, ())} - {0})) for n, t in given)


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


def resized(tensor: torch.Tensor, size: int, dim: int = 0) -> torch.Tensor:
    """The same entries, taken again or left out, so that `dim`, by default the batch, has this size."""
    return tensor.index_select(dim, torch.arange(size, device=tensor.device) % tensor.shape[dim])


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
