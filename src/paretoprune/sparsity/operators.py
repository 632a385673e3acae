"""The kernels as operators of PyTorch, `torch.ops.paretoprune.sparse_linear` and `sparse_conv`.

They take the parts of a packed weight (`sparsity.parts`) as tensors and words, so that a graph that calls them can be
exported and compiled. `rank`: dimensions of x, which an exporter may not know. Inference only. What the kernels need is
laid out at the first call with a weight, and kept for as long as the weight lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from paretoprune.core.errors import DataError, UsageError
from paretoprune.sparsity.kernels import End, Grid, Window
from paretoprune.sparsity.kernels.layers import ACTIVATIONS, MOST_THREADS
from paretoprune.sparsity.kernels.making import Layer, kernel_of
from paretoprune.sparsity.parts import SIGNS, weight_of_parts

_WEIGHT = "Tensor value, Tensor at, Tensor? scale, str pattern, str coding, int[] shape"
_END = "Tensor? bias, Tensor? residual, str activation, float[] grid"
LINEAR, CONV = "sparse_linear", "sparse_conv"

_LIBRARY = torch.library.Library("paretoprune", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(f"{LINEAR}(Tensor x, {_WEIGHT}, {_END}, int rank) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.define(f"{CONV}(Tensor x, {_WEIGHT}, {_END}, int[] stride, int[] padding) -> Tensor")  # type: ignore[no-untyped-call]

sparse_linear = torch.ops.paretoprune.sparse_linear.default
sparse_conv = torch.ops.paretoprune.sparse_conv.default

_Key = tuple[Any, ...]
_KERNELS: dict[_Key, tuple[Layer, tuple[StorageWeakRef, ...]]] = {}


def _run(x: Tensor, weight: tuple[Any, ...], end: tuple[Any, ...], window: Window | None) -> Tensor:
    value, at, scale, pattern, coding, shape = weight
    bias, residual, activation, grid = end
    _check(x, "x")
    layer = _kernel(value, at, scale, pattern, coding, shape, bias, activation, grid, window)
    given = x.detach().contiguous().numpy()
    if residual is not None:
        _check(residual, "residual")
        return torch.from_numpy(layer(given, residual.detach().contiguous().numpy()))
    return torch.from_numpy(layer(given))


def _kernel(
    value: Tensor,
    at: Tensor,
    scale: Tensor | None,
    pattern: str,
    coding: str,
    shape: Sequence[int],
    bias: Tensor | None,
    activation: str,
    grid: Sequence[float],
    window: Window | None,
) -> Layer:
    """The layer laid out for this weight, made once."""
    held = [t for t in (value, at, scale, bias) if t is not None]
    threads = min(torch.get_num_threads(), MOST_THREADS)
    marks = tuple((t.untyped_storage()._cdata, t.storage_offset(), _version(t)) for t in held)
    key = (marks, pattern, coding, tuple(shape), activation, tuple(grid), window, threads)
    found = _KERNELS.get(key)
    if found is not None:
        return found[0]
    for other in [k for k, (_, refs) in _KERNELS.items() if any(r.expired() for r in refs)]:  # type: ignore[no-untyped-call]
        del _KERNELS[other]
    parts = (t.detach().cpu().contiguous().numpy() for t in (value, at))
    packed = weight_of_parts(pattern, coding, shape, *_words(pattern, *parts), _array(scale))
    if activation not in ACTIVATIONS:
        raise UsageError(f"activation {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    end = End(_array(bias), activation)
    made = kernel_of(packed, end, window, Grid(grid[0], int(grid[1])) if grid else None, threads)
    # Held weakly: as long as the reference lives, no other storage gets the same number.
    refs = tuple(StorageWeakRef(t.untyped_storage()) for t in held)  # type: ignore[no-untyped-call]
    _KERNELS[key] = made, refs
    return made


def _words(pattern: str, value: Any, at: Any) -> tuple[Any, Any]:
    """torch has few operators for unsigned words, so bits travel as int32."""
    return (value.view("uint32") if pattern == SIGNS else value), at


def _array(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().cpu().contiguous().numpy()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _check(tensor: Tensor, name: str) -> None:
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise DataError(
            f"{name} is {tensor.dtype} on {tensor.device}: the sparse kernels take float32 on the CPU; convert it"
        )


def _linear(x: Tensor, *rest: Any) -> Tensor:
    return _run(x, rest[:6], rest[6:10], None)


def _conv(x: Tensor, *rest: Any) -> Tensor:
    return _run(x, rest[:6], rest[6:10], window_of(*rest[10:]))


def window_of(stride: Sequence[int], padding: Sequence[int]) -> Window:
    """`padding`: of height and width."""
    high, wide = padding
    return Window((stride[0], stride[1]), (high, wide, high, wide))


def _linear_shape(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], rest[5][0]))


def _conv_shape(x: Tensor, *rest: Any) -> Tensor:
    shape, stride, padding = rest[5], rest[10], rest[11]
    sizes = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[2:], padding, shape[2:], stride, strict=True)]
    return x.new_empty((x.shape[0], shape[0], *sizes))


_LIBRARY.impl(LINEAR, _linear, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl(CONV, _conv, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake(f"paretoprune::{LINEAR}", _linear_shape, lib=_LIBRARY)
torch.library.register_fake(f"paretoprune::{CONV}", _conv_shape, lib=_LIBRARY)


def _no_gradient(*_: Any) -> Any:
    raise UsageError("the sparse kernels are for inference: train the network before it is packed")


for _name in (LINEAR, CONV):
    torch.library.register_autograd(f"paretoprune::{_name}", _no_gradient, lib=_LIBRARY)
