"""Inputs of a network as plain data: kinds and ranges, no values."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from paretoprune.core.errors import FileError

MAX_ELEMENTS = 1 << 28
"""Entries that a file may ask for, in all inputs together."""
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
    if tensor.is_floating_point() or tensor.is_complex():
        values = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
        finite = values[values.isfinite()].double()  # a mask may hold minus infinity
        spread = float(finite.std(unbiased=False)) if finite.numel() > 1 else 1.0
        return figures | {"mean": float(finite.mean()) if finite.numel() else 0.0, "std": spread}
    if tensor.dtype == torch.bool:
        return figures
    ordered = tensor.ndim == 1 and len(tensor) > 1 and not bool((tensor.diff() < 0).any())
    return figures | {"low": int(tensor.min()), "high": int(tensor.max()), "ordered": ordered}


def made(data: Any) -> Any:
    """Inputs of the kinds described. Raises FileError, KeyError, TypeError or ValueError for anything malformed."""
    return _Maker().make(data)


class _Maker:
    def __init__(self) -> None:
        self._left = MAX_ELEMENTS

    def make(self, data: Any, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise FileError("the inputs are nested too deeply")
        if isinstance(data, list):
            return [self.make(v, depth + 1) for v in data]
        if not isinstance(data, dict):
            return data
        ((kind, content),) = data.items()
        if kind == "tensor":
            return self._tensor(content)
        if kind == "dict":
            return {str(k): self.make(v, depth + 1) for k, v in content.items()}
        if kind not in ("tuple", "list"):
            raise FileError(f"the manifest holds an input of unknown kind {str(kind)[:40]!r}")
        values = [self.make(v, depth + 1) for v in content]
        return tuple(values) if kind == "tuple" else values

    def _tensor(self, figures: Mapping[str, Any]) -> torch.Tensor:
        """Values of the kind that was described; the ends of a range are among them."""
        dtype, shape = getattr(torch, str(figures["dtype"]), None), figures["shape"]
        for size in shape:
            if type(size) is not int or size < 0:
                raise FileError(f"the manifest describes an input of shape {str(shape)[:60]}")
        count = prod(shape)
        self._left -= count
        if not isinstance(dtype, torch.dtype) or self._left < 0:
            raise FileError(
                f"the manifest describes an input of shape {str(shape)[:60]} and type {str(figures['dtype'])[:40]!r}, "
                f"which is no type or, with the others, more than the {MAX_ELEMENTS} entries that are sensible"
            )
        generator = torch.Generator().manual_seed(0)
        if dtype.is_floating_point or dtype.is_complex:
            pair = [*shape, 2] if dtype.is_complex else shape
            noise = torch.randn(pair, generator=generator, dtype=torch.float64)
            noise = noise * float(figures["std"]) + float(figures["mean"])
            return (torch.view_as_complex(noise) if dtype.is_complex else noise).to(dtype)
        if dtype == torch.bool:
            return torch.rand(shape, generator=generator) < 0.5
        low, high = int(figures["low"]), int(figures["high"])
        values = torch.randint(low, high + 1, shape, generator=generator)
        ends = values.reshape(-1)
        if count:
            ends[0], ends[-1] = low, high
        # Offsets of bags and the like must not fall.
        return (values.sort().values if figures.get("ordered") is True else values).to(dtype)
