"""The independent reference: the user's own Python forward with every entry that was not kept set to zero.

It knows parameters by name and which of their indices stayed, and nothing of graphs, axes or rules. Normalisations
take their statistics over kept positions, which a `TorchFunctionMode` sees to while the original forward runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.networks.entry import arguments

Kept = Mapping[str, Sequence[NDArray[np.int64] | None]]

TOLERANCE = 1e-8
"""Largest difference over the scale of each output, in double precision."""


class Double(TorchDispatchMode):
    """Casts to a lower precision that a forward spells out go to double: nothing hides in rounding."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        return func(*args, **{k: torch.float64 if _single(v) else v for k, v in given.items()})


def _single(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in (torch.float32, torch.float16, torch.bfloat16)


def fold(model: nn.Module) -> nn.Module:
    """Weight norm, spectral norm and other reparametrisations become the plain weights that `kept` names."""
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, (WeightNorm, SpectralNorm)):
                (remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm)(module, hook.name)
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[union-attr, arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return model


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def flat(output: Any) -> list[Tensor]:
    return [v for v in pytree.tree_leaves(output) if isinstance(v, Tensor)]


def run(model: Callable[..., Any], example: Any, *, strict: bool = True) -> list[Tensor]:
    """Outputs without gradients. `strict`: casts to single precision that the forward spells out are not done.

    Without `strict` a table that was computed in single precision once, and is a constant of a graph, agrees.
    """
    args, kwargs = arguments(example)
    with torch.no_grad(), Double() if strict else nullcontext():
        return [v.detach().double() for v in flat(model(*args, **kwargs))]


def to_double(example: Any) -> Any:
    return pytree.tree_map(lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, example)


def error(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """The largest difference over the scale of its output; infinite where shapes or numbers are missing."""
    if len(expected) != len(got):
        return float("inf")
    return max((_apart(a, b) for a, b in zip(expected, got, strict=True)), default=float("inf"))


def _apart(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    finite = torch.isfinite(a)
    scale = float(a[finite].abs().max()) if bool(finite.any()) else 1.0
    apart = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(nan=float("inf"), posinf=float("inf"))
    return float(apart.max()) / (scale or 1.0)


@dataclass
class Reference:
    """`model` is fresh and in double precision; it is changed: entries that are not kept become zero."""

    model: nn.Module
    kept: Kept
    unknown: list[str] = field(default_factory=list)
    """Names in `kept` that the user's network does not have: constants of its forward."""

    def __post_init__(self) -> None:
        fold(self.model)
        tensors = named_tensors(self.model)
        self.masks: dict[int, list[Tensor | None]] = {}
        for name, dims in self.kept.items():
            if name not in tensors:
                self.unknown.append(name)
                continue
            masks = [_mask(tensors[name].shape[d], index) for d, index in enumerate(dims)]
            self.masks[id(tensors[name])] = masks
            _zero(tensors[name], masks)

    def run(self, example: Any, statistics: str, *, strict: bool = True) -> list[Tensor]:
        """`statistics`: "kept" takes hand-written means and variances over kept positions too; "all" as they stand."""
        was = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with KeptStatistics(self.masks, statistics):
                return run(self.model, example, strict=strict)
        finally:
            torch.backends.mha.set_fastpath_enabled(was)


def _mask(size: int, index: NDArray[np.int64] | None) -> Tensor | None:
    if index is None:
        return None
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.as_tensor(np.asarray(index, dtype=np.int64))] = True
    return mask


def _zero(tensor: Tensor, masks: Sequence[Tensor | None]) -> None:
    if not tensor.is_floating_point():
        return
    with torch.no_grad():
        for dim, mask in enumerate(masks):
            if mask is not None:
                tensor.index_fill_(dim, (~mask).nonzero().flatten(), 0)


class KeptStatistics(TorchFunctionMode):
    """Normalisations over kept positions, which are known from the normalisation's own weight, or else from the input.

    A normalisation without a weight has for removed positions those where its whole input is exactly zero.
    """

    def __init__(self, masks: Mapping[int, list[Tensor | None]], statistics: str):
        super().__init__()
        self.masks, self.statistics = masks, statistics
        self.handlers = {
            F.layer_norm: self.layer_norm,
            F.rms_norm: self.rms_norm,
            F.group_norm: self.group_norm,
            F.batch_norm: self.batch_norm,
            F.scaled_dot_product_attention: self.attention,
        }
        self.by_hand = {
            torch.mean: "mean",
            Tensor.mean: "mean",
            torch.var: "var",
            Tensor.var: "var",
            torch.std: "std",
            Tensor.std: "std",
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.handlers:
            given = (
                inspect.signature(func).bind(*args, **kwargs) if func is not F.scaled_dot_product_attention else None
            )
            if given is None:
                return self.attention(func, args, kwargs)
            given.apply_defaults()
            return self.handlers[func](func, given.arguments)
        if func in _INNER:
            names, function = _INNER[func]
            given_by_name = dict(zip(names, args, strict=False)) | kwargs
            return self.handlers[function](func, given_by_name, args, kwargs)
        if self.statistics != "all" and func in self.by_hand:
            return self.moment(self.by_hand[func], func, args, kwargs)
        return func(*args, **kwargs)

    # -- which positions count -----------------------------------------------------------------------------------

    def kept(self, weight: Tensor | None) -> list[Tensor | None] | None:
        return None if weight is None else self.masks.get(id(weight))

    def trailing(self, x: Tensor, rank: int, weight: Tensor | None) -> Tensor | None:
        """Kept positions of the last `rank` dims, as ones and zeros that broadcast; None where all count."""
        masks = self.kept(weight)
        if masks is None and weight is None:
            masks = [alive(x, x.ndim - rank + i) for i in range(rank)]
        return _outer(masks, x)

    # -- functions -----------------------------------------------------------------------------------------------

    def layer_norm(self, func: Any, given: Mapping[str, Any], args: Any = None, kwargs: Any = None) -> Tensor:
        x, shape = given["input"], given["normalized_shape"]
        mask = self.trailing(x, len(shape), given.get("weight"))
        if mask is None:
            return _call(func, given, args, kwargs)
        dims = list(range(x.ndim - len(shape), x.ndim))
        mean, var = _moments(x, mask, dims)
        normal = (x - mean) / torch.sqrt(var + given.get("eps", 1e-5))
        return _affine(normal, given.get("weight"), given.get("bias"))

    def rms_norm(self, func: Any, given: Mapping[str, Any], args: Any = None, kwargs: Any = None) -> Tensor:
        x, shape = given["input"], given["normalized_shape"]
        mask = self.trailing(x, len(shape), given.get("weight"))
        if mask is None:
            return _call(func, given, args, kwargs)
        dims = list(range(x.ndim - len(shape), x.ndim))
        eps = given.get("eps")
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        count = mask.expand_as(x).sum(dims, keepdim=True).clamp(min=1)
        square = (x * x * mask).sum(dims, keepdim=True) / count
        return _affine(x / torch.sqrt(square + eps), given.get("weight"), None)

    def group_norm(self, func: Any, given: Mapping[str, Any], args: Any = None, kwargs: Any = None) -> Tensor:
        x, groups, weight = given["input"], given["num_groups"], given.get("weight")
        masks = self.kept(weight)
        line = masks[0] if masks is not None else alive(x, 1) if weight is None else None
        if line is None:
            return _call(func, given, args, kwargs)
        column = (1, -1) + (1,) * (x.ndim - 2)
        shape = (x.shape[0], groups, -1)
        mask = line.to(x.dtype).reshape(column).expand_as(x).reshape(shape)
        mean, var = _moments(x.reshape(shape), mask, [2])
        normal = ((x.reshape(shape) - mean) / torch.sqrt(var + given.get("eps", 1e-5))).reshape(x.shape)
        bias = given.get("bias")
        return _affine(normal, *(None if p is None else p.reshape(column) for p in (weight, bias)))

    def batch_norm(self, func: Any, given: Mapping[str, Any], args: Any = None, kwargs: Any = None) -> Tensor:
        """In training mode on a weight (weight standardisation) the statistics are those of kept entries."""
        x = given["input"]
        lines = [alive(x, d) for d in range(2, x.ndim)] if given.get("training") else []
        if all(line is None for line in lines):
            return _call(func, given, args, kwargs)
        mask = _outer([None, None, *lines], x)
        mean, var = _moments(x, mask, [0, *range(2, x.ndim)])
        normal = (x - mean) / torch.sqrt(var + given.get("eps", 1e-5))
        column = (1, -1) + (1,) * (x.ndim - 2)
        parts = (None if p is None else p.reshape(column) for p in (given.get("weight"), given.get("bias")))
        normal = _affine(normal, *parts)
        return normal if mask is None else normal * mask

    def attention(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """With "drift", a default scale follows the number of kept positions: what no pruning should do."""
        if self.statistics == "drift" and kwargs.get("scale") is None:
            line = alive(args[0] if args else kwargs["query"], -1)
            if line is not None:
                kwargs = {**kwargs, "scale": float(line.sum()) ** -0.5}
        return func(*args, **kwargs)

    def moment(self, kind: str, func: Any, args: Any, kwargs: Any) -> Any:
        """A mean, variance or deviation that a forward takes by hand."""
        x = args[0] if args else kwargs["input"]
        named = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if named is None or isinstance(named, bool):
            return func(*args, **kwargs)
        dims = [d % x.ndim for d in ([named] if isinstance(named, int) else named)]
        lines = [alive(x, d) if d in dims else None for d in range(x.ndim)]
        mask = _outer(lines, x)
        if mask is None:
            return func(*args, **kwargs)
        keep = bool(kwargs.get("keepdim", False)) or (kind == "mean" and len(args) > 2 and args[2] is True)
        mean, var = _moments(x, mask, dims)
        if kind != "mean":
            unbiased = kwargs.get("unbiased", kwargs.get("correction", 1) != 0)
            count = mask.expand_as(x).sum(dims, keepdim=True)
            var = var * count / (count - 1).clamp(min=1) if unbiased else var
        value = {"mean": mean, "var": var, "std": var.sqrt()}[kind]
        return value if keep else value.squeeze(tuple(dims))


_NORM = ("input", "normalized_shape", "weight", "bias", "eps")
_INNER: dict[Any, tuple[tuple[str, ...], Any]] = {
    torch.layer_norm: (_NORM, F.layer_norm),
    torch.rms_norm: (("input", "normalized_shape", "weight", "eps"), F.rms_norm),
    torch.group_norm: (("input", "num_groups", "weight", "bias", "eps"), F.group_norm),
    torch.batch_norm: (
        ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
        F.batch_norm,
    ),
}


def alive(x: Tensor, dim: int) -> Tensor | None:
    """Positions of `dim` where anything differs from zero; None where all do."""
    others = [d for d in range(x.ndim) if d != dim % x.ndim]
    line = (x != 0).any(dim=others[0]) if len(others) == 1 else (x != 0).movedim(dim, 0).flatten(1).any(1)
    return None if bool(line.all()) or not bool(line.any()) else line


def _outer(masks: Sequence[Tensor | None] | None, x: Tensor) -> Tensor | None:
    """Masks of the last dims multiplied into one that broadcasts against x."""
    found: Tensor | None = None
    for i, line in enumerate(masks or ()):
        if line is not None:
            column = line.to(x.dtype).reshape((-1,) + (1,) * (len(masks or ()) - 1 - i))
            found = column if found is None else found * column
    return found


def _moments(x: Tensor, mask: Tensor | None, dims: list[int]) -> tuple[Tensor, Tensor]:
    ones = torch.ones_like(x) if mask is None else mask.to(x.dtype).expand_as(x)
    count = ones.sum(dims, keepdim=True).clamp(min=1)
    mean = (x * ones).sum(dims, keepdim=True) / count
    return mean, ((x - mean).square() * ones).sum(dims, keepdim=True) / count


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _call(func: Any, given: Mapping[str, Any], args: Any, kwargs: Any) -> Tensor:
    return func(**given) if args is None else func(*args, **kwargs)
