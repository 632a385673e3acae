"""What enters every contraction, as second moments: all that least squares needs to know of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from paretoprune.core.data import batch_size, take
from paretoprune.core.errors import DataError, PruneError
from paretoprune.core.graph import Contraction, Program
from paretoprune.recover.inputs import chosen, device_of, part, to_device

ROWS_CAP = 50_000
"""Rows per contraction; a convolution gives one per output pixel, neighbours nearly alike: on a halved ResNet-20,
25,000 to 1,000,000 rows gave the same accuracy within noise."""
COLUMNS_CAP = 8192
"""Contractions with more columns get no Gram matrix (8192² in double precision are 512 MiB)."""
FLOATS_AT_ONCE = 2**25
"""Size aimed at for the row matrix of one piece of a batch (128 MiB in single precision)."""
MOST_SAMPLES = 64
FEWEST = 8
"""Samples of a piece that a contraction sees at least, however many rows each gives."""


@dataclass(frozen=True)
class Gram:
    """Moments of the rows x that enter a contraction with K columns: `second` E[x xᵀ] (K, K), `mean` E[x] (K,).

    Double precision, over `rows` rows.
    """

    second: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    rows: int

    def centred(self) -> Tensor:
        """Covariance (K, K): what an output's free constant cannot take up."""
        return self.second - torch.outer(self.mean, self.mean)


def collect_grams(
    program: Program,
    contractions: Iterable[Contraction],
    batches: Iterable[Any],
    *,
    samples: int = 512,
    rows_cap: int = ROWS_CAP,
) -> dict[str, Gram]:
    """Gram per contraction node, from one pass over about `samples` samples.

    Products are taken in single precision over at most 64 samples (less where rows are long) and added up in double.
    Where a contraction would see more than `rows_cap` rows, it sees fewer samples of each piece (a seeded choice), then
    fewer of their rows. A contraction with more than COLUMNS_CAP columns is left out. Raises DataError for no batches
    or values that are not finite.
    """
    state = program.module.state_dict(keep_vars=True)
    sums = {}
    for contraction in contractions:
        columns = contraction.matrix(state[contraction.weight].detach()).shape[1]
        if columns <= COLUMNS_CAP:
            sums[contraction.node] = _Sum(contraction, columns, rows_cap / samples)
    if not sums:
        return {}
    _run(program, list(sums.values()), batches, samples)
    return {node: one.gram() for node, one in sums.items()}


def _run(program: Program, sums: Sequence[_Sum], batches: Iterable[Any], samples: int) -> None:
    device = device_of(program.module)
    watch: dict[str, Callable[[Tensor], None]] = {one.contraction.node: one.add for one in sums}
    given = 0
    for inputs, _ in take(batches, samples):
        start, size = 0, min(batch_size(inputs), samples - given)
        while start < size:
            stop = _piece_end(sums, start, size)
            for one in sums:
                one.samples = stop - start
            program.observe(to_device(part(inputs, start, stop), device), watch)
            start = stop
        given += size
    if given == 0:
        raise DataError("no calibration batch: reconstruction needs samples to look at")


def _piece_end(sums: Sequence[_Sum], start: int, size: int) -> int:
    """Where the next piece ends: its longest row matrix should fit FLOATS_AT_ONCE. The very first has 2 samples.

    No piece of one sample is left over: some graphs do not take one.
    """
    longest = max(one.floats_per_sample for one in sums)
    most = max(2, min(MOST_SAMPLES, FLOATS_AT_ONCE // longest)) if longest else 2
    stop = min(size, start + most)
    return size if size - stop == 1 else stop


class _Sum:
    """The running sums of one contraction."""

    def __init__(self, contraction: Contraction, columns: int, rows_per_sample: float) -> None:
        self.contraction = contraction
        self.rows_per_sample = rows_per_sample
        self.samples = 0
        self.seen = 0
        self.rows_each = 0.0
        self.floats_per_sample = 0
        self.rows = 0
        self.second = torch.zeros(columns, columns, dtype=torch.float64)
        self.total = torch.zeros(columns, dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(0)

    def add(self, entering: Tensor) -> None:
        wanted = max(1, math.ceil(self.rows_per_sample * self.samples))
        entering = self._fewer_samples(entering.detach(), wanted)
        rows = self.contraction.rows(entering)
        self.seen += self.samples
        if self.seen == self.samples:
            self.rows_each = len(rows) / self.samples
            self.floats_per_sample = rows.numel() // self.samples
        if len(rows) > wanted:
            (rows,) = chosen(wanted, self.generator, rows)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        self.second += (rows.T @ rows).double().cpu()
        self.total += rows.sum(dim=0).double().cpu()
        self.rows += len(rows)

    def _fewer_samples(self, entering: Tensor, wanted: int) -> Tensor:
        """Whole samples left out first (that saves their rows' making), down to FEWEST of a piece."""
        if entering.shape[0] != self.samples or self.rows_each * self.samples <= wanted:
            return entering
        fewer = min(self.samples, max(FEWEST, math.ceil(wanted / self.rows_each)))
        return chosen(fewer, self.generator, entering)[0]

    def gram(self) -> Gram:
        node = self.contraction.node
        if self.rows == 0:
            raise PruneError(f"contraction {node!r} was never reached in the calibration pass")
        if not bool(torch.isfinite(self.second).all()):
            raise DataError(f"what enters {node!r} is not finite on the calibration batches: check inputs and weights")
        return Gram(self.second / self.rows, self.total / self.rows, self.rows)
