"""Products of half-precision matrices on a processor, carried out in single precision.

Many processors have no arithmetic for bfloat16 or float16 and take three times as long for it as for float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

_LARGE = 1 << 20
"""Elements of the second matrix from which it pays."""
_COLUMNS = 64
"""Of the second matrix that are held in single precision at a time: they stay in the cache."""
_PRODUCTS: Mapping[Any, int] = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}
"""Operators and where their first matrix stands."""


def called(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`func(*args, **kwargs)`; a large product comes out rounded once, from sums in single precision."""
    first = _PRODUCTS.get(func)
    if first is None or kwargs or len(args) != first + 2 or not _half(args[first + 1]):
        return func(*args, **kwargs)
    a, b = args[first:]
    left, out = a.float(), torch.empty(a.shape[0], b.shape[1])
    buffer = torch.empty(_COLUMNS, b.shape[0])  # one for all: many short-lived ones leave holes in the heap
    for part, into in zip(b.split(_COLUMNS, dim=1), out.split(_COLUMNS, dim=1), strict=True):  # type: ignore[no-untyped-call]
        rows = buffer[: part.shape[1]].copy_(part.T)
        into.copy_(left @ rows.T)
    return (out if first == 0 else out.add_(args[0])).to(b.dtype)


def _half(matrix: torch.Tensor) -> bool:
    return type(matrix) in (torch.Tensor, torch.nn.Parameter) and (
        matrix.device.type == "cpu" and matrix.dtype in (torch.bfloat16, torch.float16) and matrix.numel() >= _LARGE
    )
