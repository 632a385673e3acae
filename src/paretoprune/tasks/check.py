"""Every set of batches read once, before any work: labels, NaN, sizes, overlap."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from paretoprune.core.data import Data, batch_size
from paretoprune.core.errors import DataError
from paretoprune.core.graph import Example
from paretoprune.core.protocols import Task
from paretoprune.tasks.batches import Batches, Dynamic, prepare
from paretoprune.tasks.evaluate import as_torch

PATIENCE = 10_000
"""Batches read from a set without a length before it is called infinite."""
OVERLAP_SAMPLES = 50_000
"""Samples per set that are compared with the other sets'."""
HASHED_BATCHES = 4
"""Batches per set whose content enters the fingerprint."""
MEASURED = ("validation", "test")


@dataclass(frozen=True)
class CheckedData:
    """The data as every later step should read it, and what was found.

    `samples` and `batches` are per set. `fingerprint` stands for sizes, shapes and the first batches' content (a set
    whose first batch changes from pass to pass, by shuffling, enters with sizes and shapes only).
    """

    data: Data
    samples: Mapping[str, int]
    batches: Mapping[str, int]
    fingerprint: str
    notes: tuple[str, ...] = ()


def check_data(
    data: Data,
    example: Any,
    task: Task,
    *,
    predict: Callable[[Example], Any] | None = None,
    cap: int | None = None,
    dynamic: Dynamic | None = None,
) -> CheckedData:
    """Read every set once, up to `cap` batches each; the caller's random state stays as it was.

    With `predict`, labels are checked against the network's output on the example. Raises DataError for a set that is
    empty, endless without a cap, readable only once, without labels where a metric is measured, or that holds NaN,
    inputs of another shape or type, or labels that do not fit. Warns where samples of one set are found in another.
    """
    inputs = Example.of(example)
    prepared = prepare(data, inputs, cap=cap, dynamic=dynamic)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        output = None if predict is None else as_torch(predict(inputs))
        found = {name: _read(batches, task, output) for name, batches in _sets(prepared).items()}
    notes = tuple(_overlaps(found))
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    return CheckedData(
        prepared,
        {name: one.samples for name, one in found.items()},
        {name: one.batches for name, one in found.items()},
        _fingerprint(found),
        notes,
    )


def _sets(data: Data) -> dict[str, Batches]:
    sets = {"train": data.train, "validation": data.validation, "test": data.test, "calibration": data.calibration}
    return {name: batches for name, batches in sets.items() if isinstance(batches, Batches)}


class _Found:
    """What one pass over a set showed."""

    def __init__(self) -> None:
        self.samples = 0
        self.batches = 0
        self.hashes: set[bytes] = set()
        self.first: list[bytes] = []
        self.shapes: list[str] = []
        self.stable = False
        self.nan: dict[str, tuple[int, int, int]] = {}

    def count_nan(self, name: str, tensor: Any) -> None:
        """Add to (values, batches, first batch) of a tensor that holds NaN."""
        if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
            return
        values = int(tensor.isnan().sum())
        if values:
            had = self.nan.get(name, (0, 0, self.batches))
            self.nan[name] = (had[0] + values, had[1] + 1, had[2])


def _read(batches: Batches, task: Task, output: Any) -> _Found:
    found = _Found()
    for inputs, labels in batches:
        if not batches.sized and found.batches >= PATIENCE:
            raise DataError(f"{batches.name} has no length and more than {PATIENCE} batches: set a cap on its batches")
        _read_batch(found, batches.name, inputs, as_torch(labels), task, output)
        found.batches += 1
    if found.samples == 0:
        raise DataError(f"{batches.name} is empty: no batch came out of it")
    if found.nan:
        name, (values, count, first) = next(iter(found.nan.items()))
        raise DataError(
            f"{batches.name}: {name} holds {values} NaN value(s) in {count} of {found.batches} batches, first in batch "
            f"{first}: clean or drop these samples"
        )
    again = next(iter(batches), None)
    if again is None:
        raise DataError(
            f"{batches.name} can be read only once: its second pass gave no batch; give a list or a DataLoader"
        )
    found.stable = _content(*again) == found.first[0]
    return found


def _read_batch(found: _Found, name: str, inputs: Example, labels: Any, task: Task, output: Any) -> None:
    size = batch_size(inputs)
    for key, tensor in inputs.tensors():
        found.count_nan(f"input {key!r}", tensor)
    if len(found.first) < HASHED_BATCHES:
        found.first.append(_content(inputs, labels))
        found.shapes = [f"{key}{tuple(t.shape[1:])}{t.dtype}" for key, t in inputs.tensors()]
    if len(found.hashes) < OVERLAP_SAMPLES:
        found.hashes.update(_sample_hashes(inputs, size))
    if labels is None and name in MEASURED:
        raise DataError(f"{name}, batch {found.batches} has no labels: {task.metric} cannot be measured; give (x, y)")
    if labels is not None:
        _check_labels(found, name, labels, size, task, output)
    found.samples += size


def _check_labels(found: _Found, name: str, labels: Any, size: int, task: Task, output: Any) -> None:
    found.count_nan("labels", labels)
    rows = len(labels) if isinstance(labels, list) or (isinstance(labels, Tensor) and labels.ndim) else None
    if rows is not None and rows != size:
        raise DataError(f"{name}, batch {found.batches} has {size} samples but {rows} labels")
    if output is None or task.check is None or size == 0:
        return
    try:
        task.check(_rows(output, size), labels)
    except DataError as error:
        raise DataError(f"{name}, batch {found.batches}: {error}") from error


def _rows(output: Any, size: int) -> Any:
    """The example's output with its first row repeated, as if it were of a batch of `size`."""

    def repeat(leaf: Any) -> Any:
        return leaf[:1].expand(size, *leaf.shape[1:]) if isinstance(leaf, Tensor) and leaf.ndim else leaf

    return pytree.tree_map(repeat, output)


def _bytes(tensor: Tensor) -> Tensor:
    """(samples, bytes) of a tensor."""
    flat = tensor.detach().cpu().reshape(tensor.shape[0], -1).contiguous()
    return flat.view(torch.uint8) if flat.dtype != torch.bool else flat.to(torch.uint8)


def _sample_hashes(inputs: Example, size: int) -> list[bytes]:
    """One hash over all inputs of each sample."""
    if size == 0:
        return []
    joined = torch.cat([_bytes(t) for _, t in inputs.tensors() if t.ndim and t.numel()], dim=1).numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in joined]


def _content(inputs: Example, labels: Any) -> bytes:
    digest = hashlib.sha256()
    leaves = [tensor for _, tensor in inputs.tensors()] + [
        x for x in pytree.tree_leaves(as_torch(labels)) if x is not None
    ]
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.numel():
            digest.update(_bytes(leaf).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.digest()


def _fingerprint(found: Mapping[str, _Found]) -> str:
    digest = hashlib.sha256()
    for name, one in found.items():
        digest.update(f"{name} {one.batches} {one.samples} {one.shapes}".encode())
        for content in one.first if one.stable else ():
            digest.update(content)
    return digest.hexdigest()[:16]


def _overlaps(found: Mapping[str, _Found]) -> list[str]:
    """A sentence for each pair of sets that share samples. Calibration may well be a part of train."""
    pairs = [("train", "validation"), ("train", "test"), ("validation", "test"), ("calibration", "validation")]
    pairs.append(("calibration", "test"))
    notes = []
    for one, other in pairs:
        common = len(found[one].hashes & found[other].hashes) if one in found and other in found else 0
        if common:
            total = len(found[other].hashes)
            notes.append(
                f"{one} and {other} share {common} of the {total} distinct samples compared in {other}: "
                "figures measured there will look better than they are"
            )
    return notes
