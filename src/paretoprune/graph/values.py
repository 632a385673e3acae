"""Parameters and buffers of the self-check, made when an operator reads them and dropped after it.

A whole network in double precision is two to four times its own size; one parameter at a time is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod, sqrt
from mmap import mmap
from typing import Literal, Protocol
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from paretoprune.core.plan import Plan
from paretoprune.graph import surgery
from paretoprune.graph.algebra import atoms_of
from paretoprune.graph.functional import written
from paretoprune.graph.traced import TracedGraph, tensors_of

Weights = Literal["own", "random", "positive"]
"""`positive` weights keep every rectifier of a narrow network alive."""

Dims = tuple[NDArray[np.int64] | None, ...]

KEPT_BYTES = 16 << 20
"""What a side keeps made, so that small networks do not make everything again for every input."""
_ROWS_BYTES = 2 * KEPT_BYTES
"""A larger matrix in double precision is multiplied a piece at a time."""
_BLOCK = 1 << 16
"""Random numbers drawn at a time."""
_LARGE_BYTES = 1 << 20


class Values:
    """The tensors of a network with its own or with random weights, on the CPU. Names are those of the captured graph.

    What is made comes out the same however often and in whatever order: random numbers are seeded by name. Tensors
    that are one object under several names are made from the first of these.
    """

    def __init__(self, graph: TracedGraph, dtype: torch.dtype | None, weights: Weights):
        self.dtype, self.weights = dtype, weights
        self._tensors = tensors_of(graph.captured)
        self._summed = _summed(graph) if weights != "own" else {}
        first: dict[int, str] = {}
        self.owner = {name: first.setdefault(id(t), name) for name, t in self._tensors.items()}

    def whole(self, name: str) -> torch.Tensor:
        """A new tensor, which the caller may change."""
        given = self.given(name)
        if not given.is_floating_point() or self.weights == "own":
            return _empty(given.shape, self._type(given)).copy_(given)
        return self._scaled(self._drawn(name, self._type(given)), given, name)

    def sliced(self, name: str, kept: surgery.Kept) -> torch.Tensor:
        """A new tensor that holds only the kept indices, taken before it is widened to double precision."""
        given = self.given(name)
        if not given.is_floating_point() or self.weights == "own":
            return surgery.slice_tensor(given, kept[name], self.room(given, kept[name]))
        narrow = torch.float32 if self._type(given) == torch.float64 else self._type(given)
        taken = surgery.slice_tensor(self._drawn(name, narrow), kept[name], self.room(given, kept[name]))
        return self._scaled(taken, given, name)

    def rows(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, some rows) of a matrix, in order: `whole` a piece at a time."""
        given = self.given(name)
        dtype = self._type(given)
        step = max(1, KEPT_BYTES // max(given[0].numel() * dtype.itemsize, 1))
        drawn = self._stream(name, dtype, step * given[0].numel()) if self.weights != "own" else None
        for first in range(0, len(given), step):
            piece = given[first : first + step]
            if drawn is None:
                yield first, _empty(piece.shape, dtype).copy_(piece)
            else:
                yield first, self._scaled(next(drawn).reshape(piece.shape), given, name)

    def room(self, given: torch.Tensor, kept: Dims) -> torch.Tensor:
        """Where the kept indices of `given` go."""
        return _empty(surgery.sliced_shape(given, kept), self._type(given))

    def given(self, name: str) -> torch.Tensor:
        """The network's own tensor."""
        return self._tensors[self.owner[name]].detach()

    def _type(self, given: torch.Tensor) -> torch.dtype:
        if given.is_complex() and self.dtype == torch.float64:
            return torch.complex128
        return self.dtype if self.dtype is not None and given.is_floating_point() else given.dtype

    def _drawn(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Normal random numbers, single precision ones whatever the type that holds them."""
        given = self.given(name)
        return next(self._stream(name, dtype, max(given.numel(), 1)), _empty((0,), dtype)).reshape(given.shape)

    def _stream(self, name: str, dtype: torch.dtype, count: int) -> Iterator[torch.Tensor]:
        """The same, `count` numbers at a time."""
        total = self.given(name).numel()
        generator = torch.Generator().manual_seed(crc32(self.owner[name].encode()))
        drawn, left = 0, torch.empty(0)
        for first in range(0, total, count):
            into = _empty((min(count, total - first),), dtype)
            filled = 0
            while filled < len(into):
                if not len(left):
                    left = torch.randn(min(_BLOCK, total - drawn), generator=generator)
                    drawn += len(left)
                taken = min(len(left), len(into) - filled)
                into[filled : filled + taken] = left[:taken]
                filled, left = filled + taken, left[taken:]
            yield into

    def _scaled(self, noise: torch.Tensor, like: torch.Tensor, name: str) -> torch.Tensor:
        """Vectors around one (variances are among them), matrices with columns of length one."""
        if like.ndim < 2:
            return noise.abs_().add_(0.5)
        noise = noise.abs_() if self.weights == "positive" else noise
        return noise.div_(sqrt(max(self._summed.get(self.owner[name], like[0].numel()), 1)))


def _summed(graph: TracedGraph) -> dict[str, int]:
    """How many numbers are summed with each weight of a contraction, whatever the order of its dims."""
    found, result = graph.inferred, dict[str, int]()
    for node, op in found.ops.items():
        if found.rules[node].macs is None or "out" not in op.memo:
            continue
        made = set(atoms_of(op.resolve(op.memo["out"])))
        for name in {str(n.target) for t in op.tensors() for n in _origins(t) if str(n.target) in found.params}:
            dims = found.resolved(name)
            result[name] = prod(e.size for e in dims if made.isdisjoint(atoms_of(e)))
    return result


def _origins(node: fx.Node) -> list[fx.Node]:
    """The parameter that a tensor lays out anew, by operators of one tensor each."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return [node] if node.op == "get_attr" else []


def _empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A large tensor gets memory of its own, which goes back whole: a heap would be left in pieces."""
    count = prod(shape)
    if count * dtype.itemsize < _LARGE_BYTES:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(mmap(-1, count * dtype.itemsize), dtype=dtype).reshape(tuple(shape))


class Readable(Protocol):
    """Tensors by name, each made when it is read."""

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> torch.Tensor: ...

    def large(self, name: str) -> bool:
        """A matrix that is better read by `rows`."""
        ...

    def rows(self, name: str) -> Iterator[torch.Tensor]: ...


class Side:
    """What one of the two networks reads: `values` with removed entries zero, or without them (`kept` given)."""

    def __init__(self, graph: TracedGraph, plan: Plan, values: Values, kept: surgery.Kept | None = None):
        self.values, self._kept = values, kept
        self._removed = _removed(graph, plan) if kept is None else {}
        self._held: dict[str, torch.Tensor] = {}
        self._bytes = 0
        self._written = written(graph.captured.graph)

    def __contains__(self, name: object) -> bool:
        return name in self.values.owner

    def __getitem__(self, name: str) -> torch.Tensor:
        name = self.values.owner[name]
        if name in self._held:
            return self._held[name]
        made = self._made(name)
        size = made.numel() * made.element_size()
        if name in self._written or self._bytes + size <= KEPT_BYTES:
            self._held[name] = made
            self._bytes += size
        return made

    def large(self, name: str) -> bool:
        """A matrix that is better read by `rows`."""
        tensor = self.values.given(name)
        big = tensor.numel() * torch.float64.itemsize > _ROWS_BYTES and tensor.is_floating_point()
        return big and tensor.ndim == 2 and self.values.owner[name] not in (self._held.keys() | self._written)

    def rows(self, name: str) -> Iterator[torch.Tensor]:
        """What `self[name]` gives, some rows at a time."""
        name = self.values.owner[name]
        kept = None if self._kept is None else self._kept[name]
        for first, piece in self.values.rows(name):
            last = first + len(piece)
            if kept is not None:
                here = None if kept[0] is None else kept[0][(kept[0] >= first) & (kept[0] < last)] - first
                yield surgery.slice_tensor(piece, (here, kept[1]), self.values.room(piece, (here, kept[1])))
                continue
            for dim, index in self._removed.get(name, ()):
                gone = index if dim else index[(index >= first) & (index < last)] - first
                piece.index_fill_(dim, gone, 0)
            yield piece

    def _made(self, name: str) -> torch.Tensor:
        if self._kept is not None:
            return self.values.sliced(name, self._kept)
        made = self.values.whole(name)
        for dim, index in self._removed.get(name, ()):
            made.index_fill_(dim, index, 0)
        return made


def _removed(graph: TracedGraph, plan: Plan) -> Mapping[str, list[tuple[int, torch.Tensor]]]:
    """(dim, indices) of the entries that go, from the axes' members: another road than surgery's index lists."""
    twins: dict[int, list[str]] = {}
    for name, dims in graph.inferred.params.items():
        twins.setdefault(id(dims), []).append(name)
    found: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for axis in graph.axes:
        removed = np.setdiff1d(np.arange(axis.size), plan.kept.get(axis.id, range(axis.size)))
        for member in axis.members if removed.size else ():
            index = torch.from_numpy(member.entries[removed].reshape(-1))
            for name in twins[id(graph.inferred.params[member.name])]:
                found.setdefault(name, []).append((member.dim, index))
    return found
