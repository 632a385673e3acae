"""How the zeros of a Pruned are held, brought in or moved while it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from paretoprune import recover
from paretoprune.core.errors import UsageError
from paretoprune.core.plugin import look_up
from paretoprune.core.sparsity import Zeros
from paretoprune.pipeline.pruned import Pruned
from paretoprune.pipeline.put_zeros import by_name
from paretoprune.recover import Masked
from paretoprune.sparsity import Block, NofM, mask_of, matrix_of, pattern_of, weight_of

Wanted = Mapping[str, Zeros]
MakeHook = Callable[[nn.Module, Wanted], Masked]


def held(module: nn.Module, wanted: Wanted) -> Masked:
    """What is zero stays so."""
    hook = Masked(module, wanted)
    if any(z.share != 0 for z in wanted.values()) and all(bool(m.all()) for m in hook.masks.values()):
        hook.close()
        raise UsageError(
            f"the plan speaks of zeros ('{next(iter(wanted))}'), and the weights hold none: give zeros='gradual', "
            "which brings them in, or a Pruned whose plan has no sparsity"
        )
    return hook


def gradual(module: nn.Module, wanted: Wanted, **how: object) -> Masked:
    """Zeros come in along a cubic schedule; keywords of recover.Gradual."""
    _by_share("gradual", wanted)

    def choose(name: str, weight: Tensor, way: float) -> Tensor:
        zeros = wanted[name]
        return _tensor(_mask_on_the_way(zeros, matrix_of(_array(weight)), way), weight)

    return recover.Gradual(module, wanted, choose, **how)  # type: ignore[arg-type]


def rigl(module: nn.Module, wanted: Wanted, **how: object) -> Masked:
    """Zeros move; keywords of recover.RigL."""
    units = {}
    for name, zeros in wanted.items():
        pattern = pattern_of(zeros.pattern)
        if isinstance(pattern, NofM):
            raise UsageError(f"zeros='rigl' moves single weights and blocks, and '{name}' has {pattern}")
        units[name] = _Units(pattern, module.get_parameter(name).detach())
    return recover.RigL(module, units, **how)  # type: ignore[arg-type]


ZEROS: Mapping[str, MakeHook] = {"held": held, "gradual": gradual, "rigl": rigl}


def zero_hooks(network: object, module: nn.Module, zeros: str | MakeHook) -> tuple[Masked, ...]:
    """Hooks for `module`, the copy of `network` that is trained; none where its plan has no zeros."""
    make = look_up("zeros", zeros, ZEROS)
    wanted = _wanted(network, module) if isinstance(network, Pruned) else {}
    if not wanted:
        if make is not held:
            raise UsageError(
                f"zeros={zeros!r}, and no plan says where: give a Pruned of pp.sparsify (removed='later' if dense)"
            )
        return ()
    return (make(module, wanted),)


def _wanted(network: Pruned, module: nn.Module) -> dict[str, Zeros]:
    """By parameter name, tied ones once; what was clipped holds no zeros."""
    every = {n for n, p in module.named_parameters() if p.ndim > 1}
    tied = {id(p): n for n, p in module.named_parameters()}
    aliases = {n: tied[id(p)] for n, p in module.named_parameters(remove_duplicate=False)}
    table = {n: Zeros.parse(text) for n, text in network.plan.sparsity.items()}
    found = {aliases[n]: z for n, z in by_name(aliases, table).items()}
    return {n: z for n, z in found.items() if n in every and z.removed != "clip"}


def _by_share(what: str, wanted: Wanted) -> None:
    if name := next((n for n, z in wanted.items() if z.threshold is not None), ""):
        raise UsageError(f"zeros={what!r} needs a share to go to, and '{name}' has a threshold: {wanted[name]}")


def _mask_on_the_way(zeros: Zeros, matrix: np.ndarray, way: float) -> np.ndarray:
    """N:M comes in by one of m after the other."""
    pattern, scores = pattern_of(zeros.pattern), np.abs(matrix)
    if isinstance(pattern, Block):
        return mask_of(pattern, scores, (zeros.share or 0.0) * way)
    n = round(pattern.m - way * (pattern.m - pattern.n))
    return np.ones(matrix.shape, dtype=np.bool_) if n == pattern.m else mask_of(NofM(n, pattern.m), scores)


@dataclass(frozen=True)
class _Units:
    """recover.Units over the blocks of one weight."""

    pattern: Block
    weight: Tensor

    def scores(self, values: Tensor) -> Tensor:
        return torch.from_numpy(self.pattern.units(np.abs(matrix_of(_array(values)))).reshape(-1))

    def mask(self, kept: Tensor) -> Tensor:
        shape = matrix_of(np.empty(tuple(self.weight.shape), dtype=np.bool_)).shape
        grid = kept.numpy().reshape(-(-shape[0] // self.pattern.rows), -1)
        return _tensor(self.pattern.spread(grid, shape), self.weight)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _tensor(mask: np.ndarray, weight: Tensor) -> Tensor:
    return torch.from_numpy(weight_of(mask, tuple(weight.shape)))
