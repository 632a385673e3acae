"""Inputs of a network as plain data: kinds and ranges, no values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from paretoprune.core.errors import FileError

MAX_ELEMENTS = 1 << 28
"""Entries of one input that a file may ask for."""
MAX_DEPTH = 32


def described(value: Any) -> Any:
    """Kinds and ranges, no values."""
    if isinstance(value, torch.Tensor):
        return {"tensor": _figures(value)}
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [described(v) for v in value]}
    if isinstance(value, dict):
        if any(not isinstance(k, str) for k in value):
            raise FileError("inputs in a dict whose keys are not strings cannot be saved")
        return {"dict": {k: described(v) for k, v in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise FileError(f"an input of type {type(value).__name__} cannot be saved: use tensors, tuples, lists and dicts")


def _figures(tensor: torch.Tensor) -> dict[str, Any]:
    figures: dict[str, Any] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    if tensor.is_floating_point():
        values = tensor.double()
        spread = float(values.std(unbiased=False)) if tensor.numel() > 1 else 1.0
        return figures | {"mean": float(values.mean()), "std": spread}
    if tensor.dtype == torch.bool:
        return figures
    return figures | {"low": int(tensor.min()), "high": int(tensor.max())}


def made(data: Any, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise FileError("the inputs are nested too deeply")
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind == "tensor":
        return _tensor(content)
    if kind == "dict":
        return {str(k): made(v, depth + 1) for k, v in content.items()}
    if kind not in ("tuple", "list"):
        raise FileError(f"the manifest holds an input of unknown kind {str(kind)[:40]!r}")
    values = [made(v, depth + 1) for v in content]
    return tuple(values) if kind == "tuple" else values


def _tensor(figures: Mapping[str, Any]) -> torch.Tensor:
    """Values of the kind that was described; the ends of a range are among them."""
    dtype, shape = getattr(torch, str(figures["dtype"]), None), figures["shape"]
    count = 1
    for size in shape:
        count *= size if type(size) is int and size > 0 else MAX_ELEMENTS + 1
    if not isinstance(dtype, torch.dtype) or count > MAX_ELEMENTS:
        raise FileError(f"the manifest describes an input of shape {str(shape)[:60]} and type {figures['dtype']!r}")
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (noise * float(figures["std"]) + float(figures["mean"])).to(dtype)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    low, high = int(figures["low"]), int(figures["high"])
    values = torch.randint(low, high + 1, shape, generator=generator).to(dtype)
    ends = values.reshape(-1)
    ends[0], ends[-1] = low, high
    return values
