"""One change of weights that serves many pruned networks at once, and the loss that it is trained with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from paretoprune.core.copies import duplicate
from paretoprune.core.errors import UsageError
from paretoprune.core.graph import Example
from paretoprune.recover.apply import Kept
from paretoprune.recover.inputs import Batch
from paretoprune.recover.losses import SoftTargets

BETWEEN = 2
"""Members drawn in a step besides the largest and the smallest (Yu & Huang 2019, section 3.2)."""
Index = tuple[Tensor | None, ...]
"""Per dim the positions that a member reads, or None for all."""


class Nested(nn.Module):
    """Networks that were pruned from one, with one shared change: parameter p of member m is start_m + change[kept_m].

    Each starts as it is, so with what reconstruction gave it alone; what training adds is shared, in the positions of
    the network that they were pruned from. Buffers, above all the statistics of batch norms, are each member's own, and
    so are parameters that take no gradient. A member computes no more than it would alone. The gradient of an entry of
    the change is averaged over the members that read it, so that a learning rate means what it means for one network.

    `members`: (network, what it kept of the original), largest first; they are copied. Raises UsageError for fewer than
    two, and where what they kept does not say how one lies in the other.
    """

    def __init__(self, members: Sequence[tuple[nn.Module, Kept]]) -> None:
        super().__init__()
        if len(members) < 2:
            raise UsageError(f"a nested network of {len(members)} members: give at least 2")
        self.members = nn.ModuleList(duplicate(module) for module, _ in members)
        trained = [_trained(module) for module in self.members]
        self.indices = [
            {name: _index(p, kept.get(name)) for name, p in tensors.items()}
            for tensors, (_, kept) in zip(trained, members, strict=True)
        ]
        self.shared_name = _ties(trained)
        self.change = nn.ParameterDict(
            {_key(name): like.detach().new_zeros(shape) for name, shape, like in self._hulls()}
        )
        for module, tensors in zip(self.members, trained, strict=True):
            _into_buffers(module, tensors)
        self.sample(range(len(members)))
        for key, parameter in self.change.items():
            parameter.register_hook(lambda gradient, key=key: self._averaged(key, gradient))

    def _hulls(self) -> Iterable[tuple[str, tuple[int, ...], Tensor]]:
        """(shared name, the shape that holds every member's positions, a tensor of its type)."""
        found: dict[str, list[tuple[Tensor, Index]]] = {}
        for module, indices in zip(self.members, self.indices, strict=True):
            parameters = _trained(module)
            for name, index in indices.items():
                found.setdefault(self.shared_name[name], []).append((parameters[name], index))
        for name, readers in found.items():
            yield name, _hull(name, readers), readers[0][0]

    def values(self, member: int) -> dict[str, Tensor]:
        """The parameters of a member as they are now, by name."""
        start = dict(self.members[member].named_buffers(remove_duplicate=False))
        made: dict[str, Tensor] = {}
        for name, index in self.indices[member].items():
            shared = self.shared_name[name]
            if shared not in made:
                made[shared] = start[name] + _read(self.change[_key(shared)], index)
        return {name: made[self.shared_name[name]] for name in self.indices[member]}

    def tensors(self, member: int) -> dict[str, Tensor]:
        """Parameters and buffers of a member, without gradients."""
        with torch.no_grad():
            return {**dict(self.members[member].named_buffers(remove_duplicate=False)), **self.values(member)}

    def forward(self, member: int, inputs: Example) -> Any:
        values = self.values(member)
        return functional_call(self.members[member], values, inputs.args, dict(inputs.kwargs), tie_weights=False)

    def sample(self, members: Iterable[int]) -> None:
        """Say which members the next loss is the mean of."""
        self._sampled = tuple(members)
        self._readers: dict[str, Tensor] | None = None

    def _averaged(self, key: str, gradient: Tensor) -> Tensor:
        if self._readers is None:
            self._readers = self._counted()
        return gradient * (len(self._sampled) / self._readers[key].to(gradient))

    def _counted(self) -> dict[str, Tensor]:
        """By key: how many of the sampled members read each entry, at least 1."""
        counts = {key: torch.zeros(p.shape) for key, p in self.change.items()}
        for member in self._sampled:
            for shared, index in {self.shared_name[n]: i for n, i in self.indices[member].items()}.items():
                _add_one(counts[_key(shared)], index)
        return {key: count.clamp_min_(1) for key, count in counts.items()}


def _key(name: str) -> str:
    """A name that a ParameterDict takes."""
    return name.replace(".", "/")


def _trained(module: nn.Module) -> dict[str, Tensor]:
    return {n: p for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}


def _ties(members: Sequence[Mapping[str, Tensor]]) -> dict[str, str]:
    """Name of every parameter to the name under which its change is held: tied parameters are one."""
    shared: dict[str, str] = {}
    for tensors in members:
        first: dict[int, str] = {}
        for name, tensor in tensors.items():
            shared.setdefault(name, first.setdefault(id(tensor), name))
    return shared


def _index(parameter: Tensor, kept: Sequence[Any] | None) -> Index:
    dims = (None,) * parameter.ndim if kept is None else kept
    return tuple(None if k is None else torch.from_numpy(np.asarray(k, dtype=np.int64)) for k in dims)


def _hull(name: str, readers: Sequence[tuple[Tensor, Index]]) -> tuple[int, ...]:
    sizes = []
    for dim in range(readers[0][0].ndim):
        whole = {t.shape[dim] for t, index in readers if index[dim] is None}
        reach = max((int(k[-1]) + 1 for _, index in readers if (k := index[dim]) is not None), default=0)
        if len(whole) > 1 or (whole and reach > min(whole)):
            raise UsageError(
                f"'{name}' has sizes {sorted(whole | {reach} - {0})} in dimension {dim}, and nothing says how one "
                "lies in the other: give networks that were pruned from the same one, without low ranks (ranks=)"
            )
        sizes.append(max(whole | {reach}))
    return tuple(sizes)


def _into_buffers(module: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """They are where a member starts, and no longer trained themselves."""
    for name, parameter in parameters.items():
        path, _, leaf = name.rpartition(".")
        home = module.get_submodule(path)
        delattr(home, leaf)
        home.register_buffer(leaf, parameter.detach())


def _read(whole: Tensor, index: Index) -> Tensor:
    for dim, kept in enumerate(index):
        if kept is not None:
            whole = whole.index_select(dim, kept.to(whole.device))
    return whole


def _add_one(counts: Tensor, index: Index) -> None:
    """Add 1 where a member reads; one broadcast index per dim, for a grid of them would be larger than the weight."""
    places = [torch.arange(n) if k is None else k for n, k in zip(counts.shape, index, strict=True)]
    grid = tuple(p.reshape([-1 if d == dim else 1 for d in range(counts.ndim)]) for dim, p in enumerate(places))
    counts[grid if grid else ...] += 1


@dataclass
class Sandwich:
    """A step's loss: the largest member, the smallest and some between, each answering like the frozen original.

    Yu & Huang 2019, "Universally slimmable networks and improved training techniques", arXiv:1903.05134, sections 3.2
    and 3.3; there the largest member teaches, here the network that was pruned.
    """

    soft: SoftTargets
    between: int = BETWEEN

    def __call__(self, nested: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(nested, Nested)
        wanted = self.soft.answer(batch)
        last = len(nested.members) - 1
        drawn = torch.randperm(last - 1)[: self.between] + 1 if last > 1 else torch.zeros(0)
        chosen = [0, *map(int, drawn), last]
        nested.sample(chosen)
        losses = [self.soft.compare(nested(m, batch.inputs), wanted, batch.labels) for m in chosen]
        return torch.stack(losses).mean()
