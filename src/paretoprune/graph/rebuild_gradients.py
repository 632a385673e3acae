"""Gradients of the user's class beside the rewritten graph's, some at a time: all of them are as large as a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import nn

from paretoprune.graph.rebuild_close import close, scale

GRADIENT_BYTES = 16 << 20
"""Gradients that are compared at a time; a sixteenth of a large network's."""
NOISE = 1e-6
"""Times the largest gradient beside it: what rounding leaves of one that is zero, as a bias before a normalisation."""

Chunk = list[str]
"""Names of parameters whose gradients are made and compared together."""
Gradients = list[torch.Tensor | None]


@dataclass(frozen=True)
class Loss:
    """The weighted sum of all entries of all outputs, which nobody needs to compute."""

    outputs: Sequence[torch.Tensor]
    weights: Sequence[torch.Tensor]


def chunks_of(clone: nn.Module, program: nn.Module) -> tuple[list[Chunk], list[Chunk]]:
    """(each parameter larger than GRADIENT_BYTES and a sixteenth of all, the others in chunks that are not)."""
    mine = dict(clone.named_parameters(remove_duplicate=False))
    sizes = {n: p.nbytes for n, p in program.named_parameters() if p.requires_grad and n in mine}
    most = max(GRADIENT_BYTES, sum(sizes.values()) // 16)
    chunks: list[Chunk] = []
    left = 0
    for name, size in sizes.items():
        if size > left:
            chunks.append([])
            left = most
        chunks[-1].append(name)
        left -= size
    large, rest = ([c for c in chunks if (sizes[c[0]] > most) is big] for big in (True, False))
    return large, rest


def loss(outputs: Sequence[torch.Tensor]) -> Loss | None:
    """With random weights its gradient is large everywhere; the squares of a normalised output, say, have none."""
    generator = torch.Generator().manual_seed(5)
    trained = [o.abs() if o.is_complex() else o for o in outputs if o.requires_grad]
    return Loss(trained, [torch.randn(o.shape, generator=generator).to(o) for o in trained]) if trained else None


def gradients(total: Loss, module: nn.Module, chunk: Chunk) -> Gradients:
    """Gradients; of a large matrix only its products with two random vectors, one for each of its sides."""
    named = dict(module.named_parameters(remove_duplicate=False))
    of = [named[n] for n in chunk]
    found = torch.autograd.grad(total.outputs, of, total.weights, allow_unused=True, retain_graph=True)
    return [_products(g) if g is not None and g.nbytes > GRADIENT_BYTES and g.ndim > 1 else g for g in found]


def _products(gradient: torch.Tensor) -> torch.Tensor:
    matrix = gradient.flatten(1)
    generator = torch.Generator().manual_seed(7)
    left, right = (torch.randn(n, generator=generator).to(matrix) for n in matrix.shape)
    return torch.cat([left @ matrix / sqrt(len(left)), matrix @ right / sqrt(len(right))])


def apart(chunk: Chunk, theirs: Gradients, ours: Gradients) -> str:
    """The first parameter whose gradients differ; empty if none do."""
    noise = NOISE * max((scale(g) for g in ours if g is not None), default=0.0)
    for name, a, b in zip(chunk, theirs, ours, strict=True):
        if (a is None) != (b is None) or (a is not None and b is not None and not close(a, b, noise)):
            return name
    return ""
