"""When two tensors count as equal, for the comparison of the user's class with the rewritten graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch

PIECE = 1 << 16
"""Elements that are drawn or compared at a time."""
_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference over the output's scale, for the coarser types."""


def all_close(theirs: Sequence[torch.Tensor], ours: Sequence[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(close(a, b) for a, b in zip(theirs, ours, strict=True))


def close(a: torch.Tensor, b: torch.Tensor, noise: float = 0.0) -> bool:
    """`noise`: differences up to here count for nothing."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point() and not a.is_complex():
        return torch.equal(a, b.to(a.device))
    tolerance = _TOLERANCE.get(b.dtype, 1e-3)
    slack = _TOLERANCE.get(b.dtype, 1e-4) * scale(b.detach()) + noise + 1e-12
    pairs = zip(_blocks(a.detach()), _blocks(b.detach().to(a.device)), strict=True)
    return all(torch.allclose(x, y, rtol=tolerance, atol=slack, equal_nan=True) for x, y in pairs)


def scale(value: torch.Tensor) -> float:
    """The largest finite magnitude."""
    return max((float(v.abs().nan_to_num(0, 0, 0).max()) for v in _blocks(value) if v.numel()), default=0.0)


def _blocks(value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A piece at a time, for gradients are large and a comparison makes several copies."""
    return tuple(value.reshape(-1).split(PIECE))  # type: ignore[no-untyped-call]
