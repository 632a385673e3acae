"""Zeros for the weights of one network: where they stand, and what the weights that stay become."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretoprune import recover
from paretoprune.core.errors import UsageError
from paretoprune.core.graph import Contraction, Program
from paretoprune.core.sparsity import Zeros
from paretoprune.recover.apply import constant_of
from paretoprune.recover.gram import COLUMNS_CAP, Gram
from paretoprune.recover.least_squares import moments
from paretoprune.recover.surgeon import damages, pruned_by_surgeon
from paretoprune.sparsity import (
    Block,
    NofM,
    Pattern,
    mask_above,
    mask_of,
    masks_of,
    matrix_of,
    pattern_of,
    weight_of,
)

SAMPLES = 512
DAMPING = 1e-2
"""As in SparseGPT's section 3.4."""
MEMORY = 2**31
"""Bytes of moments that are held at a time; with more of them, batches are gone through several times."""
Array = NDArray[Any]


@dataclass
class Layer:
    """One weight. `matrix` (outputs, inputs) and `gram` in the order of `paretoprune.sparsity`."""

    name: str
    weight: Tensor
    zeros: Zeros
    contraction: Contraction | None = None
    constant: str | None = None
    gram: Gram | None = None

    @cached_property
    def matrix(self) -> Array:
        found: Array = matrix_of(self.weight.detach().double().cpu().numpy())
        return found

    def forget(self) -> None:
        """What is large, and can be made again."""
        self.__dict__.pop("matrix", None)
        self.gram = None

    @property
    def looks(self) -> bool:
        """Does it ask for moments of its inputs?"""
        return self.zeros.criterion != "magnitude" or self.zeros.removed == "mean"

    @property
    def pattern(self) -> Pattern:
        return pattern_of(self.zeros.pattern)

    @property
    def criterion(self) -> str:
        """What can be asked of this layer: without moments of its inputs only magnitudes."""
        return self.zeros.criterion if self.gram is not None else "magnitude"

    def moments(self) -> Tensor:
        if self.gram is None:
            raise UsageError(f"'{self.name}' has no moments of its inputs")
        return moments(self.gram, self.zeros.removed == "mean" and self.constant is not None, DAMPING)

    def scores(self) -> Array:
        """(outputs, inputs), larger is kept. Wanda: Sun et al. 2023, arXiv:2306.11695, eq. 1."""
        if self.criterion == "wanda" and self.gram is not None:
            scores: Array = np.abs(self.matrix) * self.gram.second.diagonal().sqrt().numpy()
            return scores
        if self.criterion == "sparsegpt":
            return damages(torch.from_numpy(self.matrix), self.moments()).numpy()
        return np.abs(self.matrix)


@dataclass(frozen=True)
class Found:
    """`tensors`: new values of weights, biases and running means by name. `masks`: True where a weight stays, of the
    layers that have zeros. `zeros`: what a plan says of each layer."""

    tensors: dict[str, Tensor]
    masks: dict[str, Tensor]
    zeros: dict[str, Zeros]
    notes: tuple[str, ...]


def zeros_in(
    program: Program,
    weights: Mapping[str, Tensor],
    wanted: Mapping[str, Zeros],
    batches: Iterable[Any] | None,
    together: bool = False,
) -> Found:
    """`weights`: those of the program's layers; `wanted`: by their names. Nothing is changed.

    `together`: blocks of all layers share one budget. Raises UsageError where batches are needed and missing.
    """
    layers, notes = _layers(program, weights, wanted), []
    state = program.module.state_dict(keep_vars=True)
    found = Found({}, {}, {}, ())
    for group in [layers] if together else _groups(layers):
        notes += _look(program, group, batches)
        fixed = _shared_masks(group) if together else {}
        for layer in group:
            notes += _put(layer, fixed.get(layer.name), together, state, found)
            layer.forget()
    return Found(found.tensors, found.masks, found.zeros, (*notes, *_summary(found.masks)))


def _put(layer: Layer, fixed: Array | None, together: bool, state: Mapping[str, Tensor], found: Found) -> list[str]:
    mask, matrix = _chosen(layer, fixed)
    notes: list[str] = []
    if layer.zeros.removed == "clip":
        matrix = _clipped(layer, mask)
    else:
        found.masks[layer.name] = _as_weight(mask, layer.weight)
    if layer.zeros.removed == "mean":
        notes = _fold(layer, matrix, state, found)
    values = _as_weight(matrix, layer.weight).to(layer.weight)
    same = _as_weight(matrix == layer.matrix, layer.weight).to(layer.weight.device)
    found.tensors[layer.name] = torch.where(same, layer.weight.detach(), values)
    found.zeros[layer.name] = _told(layer, mask, together)
    return notes


def _groups(layers: list[Layer]) -> list[list[Layer]]:
    """In order, so that the moments of each group fit into MEMORY."""
    groups: list[list[Layer]] = [[]]
    held = 0
    for layer in layers:
        size = 8 * layer.weight[0].numel() ** 2 if layer.looks else 0
        if groups[-1] and held + size > MEMORY:
            groups, held = [*groups, []], 0
        groups[-1].append(layer)
        held += size
    return groups


def _layers(program: Program, weights: Mapping[str, Tensor], wanted: Mapping[str, Zeros]) -> list[Layer]:
    state = program.module.state_dict(keep_vars=True)
    contractions = {c.weight: c for c in program.contractions}
    layers = []
    for name, zeros in wanted.items():
        layer = Layer(name, weights[name], zeros, contractions.get(name))
        if layer.contraction is not None:
            layer.constant = constant_of(layer.contraction, program, len(layer.weight), state)
        layers.append(layer)
    return layers


def _look(program: Program, layers: list[Layer], batches: Iterable[Any] | None) -> list[str]:
    """Take the moments of what enters, for layers that need them; sentences on those that have none."""
    asking = [n for n in layers if n.looks]
    if not asking:
        return []
    if batches is None:
        what = next((z.criterion for n in asking if (z := n.zeros).criterion != "magnitude"), "removed='mean'")
        raise UsageError(f"{what} looks at what enters each layer: give calibration= batches")
    usable = [n.contraction for n in asking if n.contraction is not None]
    grams = recover.collect_grams(program, usable, batches, samples=SAMPLES)
    for layer in asking:
        gram = None if layer.contraction is None else grams.get(layer.contraction.node)
        layer.gram = None if gram is None else _ordered(gram, layer.weight)
    missing = [n.name for n in asking if n.gram is None]
    why = f"they have groups, share their weight, or have more than {COLUMNS_CAP} columns"
    return [f"by magnitude alone, without looking at data: {', '.join(missing)} ({why})"] if missing else []


def _ordered(gram: Gram, weight: Tensor) -> Gram:
    """A contraction's columns are channels outer, taps inner; a pattern's the other way round."""
    taps = weight[0, 0].numel()
    order = torch.arange(weight.shape[1] * taps).reshape(weight.shape[1], taps).T.reshape(-1)
    return Gram(gram.second[order][:, order], gram.mean[order], gram.rows)


def _shared_masks(layers: list[Layer]) -> dict[str, Array]:
    """One order over the layers that are scored alike; a layer that could not be looked at keeps its own budget."""
    alike = [n for n in layers if n.criterion == n.zeros.criterion]
    shares = {n.zeros.share for n in alike}
    if len(shares) > 1 or None in shares:
        raise UsageError("one budget for all layers needs one share: give scope='layer' for several, or for n:m")
    patterns, scores = {n.name: n.pattern for n in alike}, {n.name: n.scores() for n in alike}
    return dict(masks_of(patterns, scores, shares.pop())) if alike else {}


def _chosen(layer: Layer, fixed: Array | None) -> tuple[Array, Array]:
    """(mask, matrix with zeros)."""
    if fixed is None and layer.zeros.threshold is not None:
        fixed = mask_above(layer.pattern, layer.matrix, layer.zeros.threshold)
    if layer.criterion == "sparsegpt":
        return _by_surgeon(layer, fixed)
    mask = _by_scores(layer) if fixed is None else fixed
    return mask, np.where(mask, layer.matrix, 0.0)


def _by_scores(layer: Layer) -> Array:
    """Wanda compares within each output, or row of blocks (its section 3); magnitudes in the whole layer."""
    pattern, scores = layer.pattern, layer.scores()
    if layer.criterion == "magnitude" or isinstance(pattern, NofM):
        return mask_of(pattern, scores, layer.zeros.share)
    groups = range(0, len(scores), pattern.rows)
    return np.concatenate([mask_of(pattern, scores[i : i + pattern.rows], layer.zeros.share) for i in groups])


def _by_surgeon(layer: Layer, fixed: Array | None) -> tuple[Array, Array]:
    pattern, share = layer.pattern, layer.zeros.share
    mask = np.ones(layer.matrix.shape, dtype=np.bool_) if fixed is None else fixed

    def choose(start: int, scores: Tensor) -> Tensor:
        stop = start + scores.shape[1]
        if fixed is None:
            due = None
            if isinstance(pattern, Block):  # what earlier groups left over is made good
                size = mask[:, start:stop].size
                due = min(1.0, max(0.0, ((share or 0.0) * mask[:, :stop].size - (~mask[:, :start]).sum()) / size))
            mask[:, start:stop] = mask_of(pattern, scores.numpy(), due)
        return torch.from_numpy(mask[:, start:stop])

    step = pattern.columns if isinstance(pattern, Block) else pattern.m
    matrix = pruned_by_surgeon(torch.from_numpy(layer.matrix), layer.moments(), choose, step=step)
    return mask, matrix.numpy()


def _clipped(layer: Layer, mask: Array) -> Array:
    """What would go is raised to the cut: the threshold, or the smallest score that stays."""
    cut, pattern = layer.zeros.threshold, layer.pattern
    if cut is None:
        units = np.abs(layer.matrix) if isinstance(pattern, NofM) else pattern.units(np.abs(layer.matrix))
        stays = mask if isinstance(pattern, NofM) else mask[:: pattern.rows, :: pattern.columns]
        cut = float(units[stays].min()) if stays.any() else 0.0
    raised = np.sign(layer.matrix) * np.maximum(np.abs(layer.matrix), cut)
    return np.where(mask, layer.matrix, raised)


def _fold(layer: Layer, matrix: Array, state: Mapping[str, Tensor], found: Found) -> list[str]:
    """What the removed weights gave on average goes into the bias, or the running mean of the batch norm behind."""
    if layer.gram is None:
        return []
    if layer.constant is None or layer.contraction is None:
        return [f"'{layer.name}': no mean was folded in, for it has neither a bias nor a batch norm behind it"]
    shift = torch.from_numpy(layer.matrix - matrix) @ layer.gram.mean
    old = state[layer.constant].detach()
    sign = 1 if layer.contraction.bias is not None else -1
    found.tensors[layer.constant] = (old.double().cpu() + sign * shift.reshape(old.shape)).to(old)
    return []


def _as_weight(matrix: Array, weight: Tensor) -> Tensor:
    return torch.from_numpy(weight_of(matrix, tuple(weight.shape)))


def _told(layer: Layer, mask: Array, together: bool) -> Zeros:
    """With one budget for all, a layer's text has its own share, in as few digits as give the same count."""
    if not together or layer.zeros.share is None:
        return layer.zeros
    gone, size = int((~mask).sum()), mask.size
    shares = (round(gone / size, digits) for digits in range(2, 17))
    share = next((s for s in shares if gone <= s * size + 1e-9 < gone + 1), gone / size)
    return Zeros(layer.zeros.pattern, share, None, layer.zeros.criterion, layer.zeros.removed)


def _summary(masks: Mapping[str, Tensor]) -> list[str]:
    if not masks:
        return []
    size = sum(m.numel() for m in masks.values())
    gone = size - sum(int(m.sum()) for m in masks.values())
    empty = [name for name, mask in masks.items() if not bool(mask.any())]
    told = [f"{gone / size:.1%} of {size} weights in {len(masks)} layers are zero"]
    return told + ([f"no weight is left in {', '.join(empty)}"] if empty else [])
