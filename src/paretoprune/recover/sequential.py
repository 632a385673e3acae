"""Least squares along the network: every layer is fitted to what the pruned layers before it really give.

The original and the pruned network walk side by side. Where a contraction y = W x of the original meets other inputs x̂
in the pruned one (fewer, or changed by what was cut before), its weights become

    W' = (W E[x x̂ᵀ] + λ W₀) (E[x̂ x̂ᵀ] + λ I)⁻¹,    W₀ the weights that were kept,

which minimise E‖W x - W' x̂‖² + λ‖W' - W₀‖², centred where something takes up a constant. So a layer repairs the errors
of all layers before it, not its own alone: the asymmetric reconstruction of Zhang et al. 2016 ("Accelerating Very Deep
Convolutional Networks", sec. 3.3), for channels as in He et al. 2017 ("Channel Pruning", sec. 3.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from paretoprune.core.data import batch_size, take
from paretoprune.core.errors import DataError
from paretoprune.core.graph import BatchNorm, Contraction, Example, Program, Walk, by_node
from paretoprune.recover.apply import Kept, Reconstructed, constant_of, outputs_kept, shift_constant
from paretoprune.recover.batchnorm import Moments
from paretoprune.recover.cross import CrossMoments, refit
from paretoprune.recover.gram import COLUMNS_CAP
from paretoprune.recover.inputs import device_of, part, to_device
from paretoprune.recover.least_squares import DAMPING

PIECE = 64
"""Samples that walk together."""
ROWS_CAP = 20_000
"""Rows per contraction; on a halved ResNet-20 (1,024 samples) 50,000 gave the same accuracy, 10,000 a point less."""
MEMORY = 2**31
"""Bytes of activations that may wait at a time; where they would be more, fewer samples walk."""
MOST_STRETCH = 100.0
"""A variance is not changed by more than this factor: channels that are nearly constant say nothing."""


@dataclass(frozen=True)
class Sequential:
    """What became of every contraction whose inputs changed, and over how many samples.

    `fewer`: there were more samples, whose activations would not have fitted into memory.
    """

    layers: tuple[Reconstructed, ...]
    samples: int
    fewer: bool


@dataclass(frozen=True)
class _Pair:
    """The same samples on their way through both networks."""

    original: Walk
    pruned: Walk
    samples: int

    def entering(self, node: str) -> tuple[Tensor, Tensor]:
        return self.original.entering(node), self.pruned.entering(node)


def reconstruct_sequentially(
    original: Program,
    pruned: Program,
    kept: Kept,
    batches: Iterable[object],
    *,
    samples: int = 512,
    rows_cap: int = ROWS_CAP,
    damping: float = DAMPING,
    memory: int = MEMORY,
) -> Sequential:
    """Fit the contractions of `pruned` in place, front to back; `kept` says what it kept of `original`.

    A batch norm behind a contraction takes up the constant in its running mean. One behind anything else (a depthwise
    convolution) has its running statistics moved as the activations' mean and variance moved. Left alone, and said:
    weights that several contractions share, and contractions with more than COLUMNS_CAP columns.

    Raises DataError for no batches or values that are not finite.
    """
    with _eval(original.module, pruned.module):
        pieces = list(_pieces(batches, samples))
        pairs = _pairs(original, pruned, pieces, memory)
        fit = _Fit(original, pruned, kept, pairs, rows_cap, damping)
        contractions = by_node(pruned.contractions)
        norms = {b.node: b for b in pruned.batch_norms}
        for node in pruned.nodes:
            if node in contractions:
                fit.contractions(contractions[node])
            elif node in norms:
                fit.batch_norm(norms[node])
    walked = sum(p.samples for p in pairs)
    return Sequential(tuple(fit.report), walked, walked < sum(size for _, size in pieces))


@contextmanager
def _eval(*modules: nn.Module) -> Iterator[None]:
    was = [m.training for m in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, was, strict=True):
            module.train(training)


def _pieces(batches: Iterable[object], samples: int) -> Iterator[tuple[Example, int]]:
    given = 0
    for inputs, _ in take(batches, samples):
        size = min(batch_size(inputs), samples - given)
        ends = [*range(PIECE, size - 1, PIECE), size]  # no piece of one sample is left over
        for start, end in zip([0, *ends], ends, strict=False):
            yield part(inputs, start, end), end - start
        given += size


def _pairs(original: Program, pruned: Program, pieces: Sequence[tuple[Example, int]], memory: int) -> list[_Pair]:
    if not pieces:
        raise DataError("no calibration batch: reconstruction needs samples to look at")
    device = device_of(pruned.module)

    def pair(inputs: Example, size: int) -> _Pair:
        there = to_device(inputs, device)
        return _Pair(original.walk(there), pruned.walk(there), size)

    few = min(2, pieces[0][1])
    each = _most_held(pair(part(pieces[0][0], 0, few), few), pruned) / few
    allowed = max(few, int(memory / max(each, 1)))
    pairs: list[_Pair] = []
    for inputs, size in pieces:
        taken = min(size, allowed - sum(p.samples for p in pairs))
        if taken >= few:
            pairs.append(pair(part(inputs, 0, taken), taken))
    return pairs


def _most_held(pair: _Pair, pruned: Program) -> int:
    most = 0
    for contraction in pruned.contractions:
        pair.entering(contraction.node)
        most = max(most, pair.original.held() + pair.pruned.held())
    return most


class _Fit:
    def __init__(
        self,
        original: Program,
        pruned: Program,
        kept: Kept,
        pairs: Sequence[_Pair],
        rows_cap: int,
        damping: float,
    ) -> None:
        self.pruned, self.kept, self.pairs, self.rows_cap, self.damping = pruned, kept, pairs, rows_cap, damping
        self.old: Mapping[str, Tensor] = original.module.state_dict(keep_vars=True)
        self.new: Mapping[str, Tensor] = pruned.module.state_dict(keep_vars=True)
        self.uses = Counter(c.weight for c in pruned.contractions)
        self.fitted: set[str] = set()
        self.report: list[Reconstructed] = []

    def contractions(self, same: Sequence[Contraction]) -> None:
        """Those of one node, which read the same."""
        met = [pair.entering(same[0].node) for pair in self.pairs]
        if not all(_same(x, y) for x, y in met):
            for contraction in same:
                self._contraction(contraction, met)

    def _contraction(self, contraction: Contraction, met: Sequence[tuple[Tensor, Tensor]]) -> None:
        left = self._left(contraction)
        error = None if left else self._refit(contraction, met)
        if not left and contraction.batch_norm is not None:
            self.fitted.add(contraction.batch_norm)
        self.report.append(Reconstructed(contraction.node, contraction.weight, error, left))

    def _left(self, contraction: Contraction) -> str:
        uses, columns = self.uses[contraction.weight], contraction.matrix(self.old[contraction.weight]).shape[1]
        if uses > 1:
            return f"{uses} contractions share the weight"
        return f"it has {columns} columns, more than {COLUMNS_CAP}" if columns > COLUMNS_CAP else ""

    def _refit(self, contraction: Contraction, met: Sequence[tuple[Tensor, Tensor]]) -> float:
        old, target = self.old[contraction.weight].detach(), self.new[contraction.weight]
        dims = self.kept[contraction.weight]
        matrix = contraction.matrix(outputs_kept(old, dims, contraction.input_dim))
        start = contraction.matrix(target.detach())
        sums = CrossMoments(contraction, matrix, start.shape[1], self.rows_cap)
        total = sum(p.samples for p in self.pairs)
        for pair, (x, y) in zip(self.pairs, met, strict=True):
            sums.add(x, y, pair.samples, total)
        constant = constant_of(contraction, self.pruned, len(matrix), self.new)
        solved = refit(start, sums, intercept=constant is not None, damping=self.damping)
        with torch.no_grad():
            target.copy_(contraction.unmatrix(solved.weight, target.shape))
            if constant is not None:
                shift_constant(constant, contraction.bias is not None, self.old, self.new, self.kept, solved)
        return solved.error

    def batch_norm(self, norm: BatchNorm) -> None:
        """Have it give the mean and variance that it gave, where no fit has taken care of it."""
        if norm.node in self.fitted:
            return
        met = [pair.entering(norm.node) for pair in self.pairs]
        dims = self.kept.get(norm.mean, (None,))
        channels = None if dims[0] is None else torch.from_numpy(np.asarray(dims[0], dtype=np.int64))
        if channels is None and all(_same(x, y) for x, y in met):
            return
        (mean, variance), (mean_new, variance_new) = (_mean_and_variance([pair[i] for pair in met]) for i in (0, 1))
        if channels is not None:
            mean, variance = mean[channels], variance[channels]
        stretch = (variance_new / variance.clamp_min(1e-12)).clamp(1 / MOST_STRETCH, MOST_STRETCH)
        running = self.new[norm.mean].detach().double().cpu()
        with torch.no_grad():
            self.new[norm.mean].copy_(mean_new - (mean - running) * stretch.sqrt())
            self.new[norm.var].mul_(stretch.to(self.new[norm.var]))


def _same(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and torch.equal(x, y)


def _mean_and_variance(pieces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    moments = Moments()
    for piece in pieces:
        moments.add(piece)
    return moments.mean, moments.deviation / moments.count
