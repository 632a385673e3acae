"""What criteria ask to see, collected from calibration batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paretoprune import graph as graphs
from paretoprune import recover
from paretoprune.core.axis import Axis
from paretoprune.core.data import batch_size, take
from paretoprune.core.errors import DataError, PruneError
from paretoprune.core.evidence import Evidence
from paretoprune.core.graph import Contraction, by_node
from paretoprune.core.protocols import Criterion, Task
from paretoprune.graph import TracedGraph
from paretoprune.recover.inputs import device_of, part, to_device

GRAM_SAMPLES = 512
INPUT_SAMPLES = 512
ACTIVATION_SAMPLES = 256
TAYLOR_SAMPLES = 256
MOST_FLOATS = 1 << 22
"""Activations kept of one contraction (16 MiB): where maps are large, of fewer samples, but at least FEWEST."""
FEWEST = 8
PIECE = 64
"""Samples that are run at a time."""
_FROM_DATA = ("gradients", "gates", "inputs", "activations", "elimination")
_LABELLED = frozenset({"gradients", "gates"})


def evidence(
    traced: TracedGraph, axes: Sequence[Axis], scorer: Criterion, task: Task, batches: Iterable[Any] | None
) -> Evidence:
    """What `scorer` needs for `axes`. Raises DataError where that takes batches, or labels, that are not given."""
    wanted = [need for need in _FROM_DATA if need in scorer.needs]
    if wanted and batches is None:
        labels = " with labels" if _LABELLED & scorer.needs else ""
        raise DataError(f"criterion {scorer.name!r} needs {wanted[0]}: give calibration= batches{labels}")
    given = batches or ()
    read = readers(traced, axes)
    return Evidence(
        gradients=gradients(traced, task, given) if "gradients" in wanted else (),
        gates=gates_of(traced, read, task, given) if "gates" in wanted else {},
        inputs=inputs_of(traced, read, given) if "inputs" in wanted else {},
        activations=activations(traced, read, given) if "activations" in wanted else {},
        losses=losses(traced, axes, read, given) if "elimination" in wanted else {},
        scales=frozenset(n.weight for n in traced.program.batch_norms if n.weight is not None),
    )


def readers(traced: TracedGraph, axes: Sequence[Axis]) -> list[Contraction]:
    """What sums over one of `axes` and can be observed."""
    names = {m.name for axis in axes for m in axis.members if m.role == "in"}
    return [c for c in traced.program.contractions if c.weight in names]


def gradients(
    traced: TracedGraph, task: Task, batches: Iterable[Any], samples: int = TAYLOR_SAMPLES
) -> Iterator[dict[str, Tensor]]:
    """Gradients of the task's loss, batch by batch, in eval mode."""
    module = traced.program.module
    named = {n: p for n, p in module.named_parameters() if p.is_floating_point()}
    was, training = {n: p.requires_grad for n, p in named.items()}, module.training
    module.eval()
    try:
        for p in named.values():
            p.requires_grad_(True)
        for inputs, labels in take(batches, samples):
            if labels is None:
                raise DataError("a calibration batch has no labels: gradients of the loss need (x, y) or a dict")
            loss = task.loss(module(*inputs.args, **inputs.kwargs), labels)
            if not bool(torch.isfinite(loss)):
                raise PruneError(f"the loss on a calibration batch is {float(loss.detach())}: check inputs and labels")
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            yield {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}
    finally:
        for n, p in named.items():
            p.requires_grad_(was[n])
        module.train(training)


def gates_of(traced: TracedGraph, read: Sequence[Contraction], task: Task, batches: Iterable[Any]) -> dict[str, Tensor]:
    """By weight: (inputs, samples), the derivative of each sample's loss by a gate on each input."""
    return graphs.gate_derivatives(traced, read, batches, task.loss, TAYLOR_SAMPLES)


def inputs_of(traced: TracedGraph, read: Sequence[Contraction], batches: Iterable[Any]) -> dict[str, Tensor]:
    """By weight and in its shape: the root mean square of what each entry is multiplied with."""
    squares: dict[str, Tensor] = {}
    rows: Counter[str] = Counter()

    def look(contraction: Contraction, samples: int, entering: Tensor) -> None:
        found = contraction.rows(entering).double()
        squares[contraction.weight] = squares.get(contraction.weight, 0) + found.square().sum(dim=0)
        rows[contraction.weight] += len(found)

    _observe(traced, read, batches, INPUT_SAMPLES, look)
    tensors = graphs.tensors_of(traced.program.module)
    result = {}
    for contraction in (c for c in read if rows[c.weight]):
        weight = tensors[contraction.weight].detach()
        mean = (squares[contraction.weight] / rows[contraction.weight]).sqrt().float()
        result[contraction.weight] = contraction.unmatrix(
            mean.expand(len(contraction.matrix(weight)), -1), weight.shape
        )
    return result


def activations(traced: TracedGraph, read: Sequence[Contraction], batches: Iterable[Any]) -> dict[str, Tensor]:
    """By weight: (inputs, samples, rows, columns) of what enters, in at least single precision on the CPU."""
    kept: dict[str, list[Tensor]] = {c.weight: [] for c in read}
    have: Counter[str] = Counter()

    def look(contraction: Contraction, samples: int, entering: Tensor) -> None:
        maps = _maps(entering, contraction.dim, samples)
        most = max(FEWEST, min(ACTIVATION_SAMPLES, MOST_FLOATS // (maps.numel() // maps.shape[1])))
        if have[contraction.weight] < most:
            some = maps[:, : most - have[contraction.weight]]
            kept[contraction.weight].append(some.float().cpu().clone())
            have[contraction.weight] += some.shape[1]

    _observe(traced, read, batches, ACTIVATION_SAMPLES, look)
    return {weight: torch.cat(parts, dim=1) for weight, parts in kept.items() if parts}


def _maps(entering: Tensor, dim: int, samples: int) -> Tensor:
    """(inputs, samples, rows, columns): the last dim of the places is the columns."""
    lead = entering.movedim(dim, 0)
    count = samples if lead.shape[1] % samples == 0 else lead.shape[1]
    columns = lead.shape[-1] if lead.ndim > 2 else 1
    return lead.reshape(lead.shape[0], count, -1, columns)


def losses(
    traced: TracedGraph, axes: Sequence[Axis], read: Sequence[Contraction], batches: Iterable[Any]
) -> dict[str, Tensor]:
    """By axis id: what each position's removal adds to the error of least squares, rising in the order of removal."""
    grams = recover.collect_grams(traced.program, read, batches, samples=GRAM_SAMPLES)
    by_weight = {c.weight: c for c in read if c.node in grams}
    orders = {axis.id: elimination(traced, axis, by_weight, grams) for axis in axes}
    return {axis: _rising(order) for axis, order in orders.items() if order is not None}


def _rising(order: recover.Order) -> Tensor:
    """Increments of the error by position. A hair is added along the order, so that sorting gives it back."""
    added = np.maximum.accumulate(np.diff(order.error, prepend=0.0).clip(min=0))
    hair = np.arange(1, len(added) + 1) * max(float(added[-1]), np.finfo(np.float64).tiny) * 1e-9
    result = torch.empty(len(added), dtype=torch.float64)
    result[torch.from_numpy(order.positions)] = torch.from_numpy(added + hair)
    return result


def elimination(
    traced: TracedGraph, axis: Axis, by_weight: Mapping[str, Contraction], grams: Mapping[str, recover.Gram]
) -> recover.Order | None:
    """Positions by the reconstruction error that their removal adds in all contractions over the axis."""
    tensors = graphs.tensors_of(traced.program.module)
    eliminations = []
    for member in axis.members:
        contraction = by_weight.get(member.name)
        if member.role != "in" or contraction is None or member.dim != contraction.input_dim:
            continue
        matrix = contraction.matrix(tensors[member.name].detach())
        inputs = tensors[member.name].shape[member.dim]
        taps = matrix.shape[1] // inputs
        entries = torch.from_numpy(member.entries)
        columns = (entries[:, :, None] * taps + torch.arange(taps)).reshape(len(entries), -1)
        eliminations.append(recover.Elimination(matrix, grams[contraction.node], columns))
    return recover.order_jointly(eliminations) if eliminations else None


def _observe(
    traced: TracedGraph,
    read: Sequence[Contraction],
    batches: Iterable[Any],
    samples: int,
    look: Callable[[Contraction, int, Tensor], None],
) -> None:
    """Call `look(contraction, samples, what enters it)` on pieces of batches."""
    device = device_of(traced.program.module)
    at, seen = by_node(read), False
    for inputs, _ in take(batches, samples):
        size = batch_size(inputs)
        for start in range(0, size, PIECE):
            stop = size if size - start <= PIECE + 1 else start + PIECE  # no piece of one sample is left over
            watch = {n: partial(_each, look, same, stop - start) for n, same in at.items()}
            traced.program.observe(to_device(part(inputs, start, stop), device), watch)
            seen = True
            if stop == size:
                break
    if not seen:
        raise DataError("no calibration batch: criteria of activations look at some")


def _each(
    look: Callable[[Contraction, int, Tensor], None], same: Sequence[Contraction], samples: int, entering: Tensor
) -> None:
    for contraction in same:
        look(contraction, samples, entering)
