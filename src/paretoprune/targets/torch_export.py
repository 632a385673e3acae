"""From a module to a verified graph file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from paretoprune.core.copies import duplicate
from paretoprune.core.errors import TargetError
from paretoprune.core.graph import Example
from paretoprune.targets.export import _device, _Flat, evaluating, verify, verify_half
from paretoprune.targets.feeds import array_of, signature_of
from paretoprune.targets.files import new_file
from paretoprune.targets.graph_file import DTYPES, OPEN, GraphFile, Graphs, Input, write
from paretoprune.targets.session import FileRunner, one_line
from paretoprune.targets.torch_target import DTYPES as TYPES


def export(
    load: Callable[[Path], FileRunner],
    graphs: Graphs,
    module: nn.Module,
    example: Example,
    path: Path,
    precision: str,
) -> Path:
    """See `Torch.export`."""
    dtype: torch.dtype = getattr(torch, TYPES[precision])
    converted = _converts(module, dtype, precision)
    signature, tensors = signature_of(example)
    tensors = [tensor.to(_device(module)) for tensor in tensors]
    example = Example(*signature.arguments(tensors), dynamic=example.dynamic)
    with evaluating(module), new_file(path) as file:
        flat = _Flat(module, signature)
        with torch.no_grad():
            count = len(flat(*tensors))
        if not count:
            raise TargetError("the network returns no tensor, so there is nothing to export")
        write(file, _held(graphs, module, example, precision, dtype if converted else None, count))
        if precision == "fp32":
            verify(load(file), flat, tensors)
        else:
            verify_half(load(file), flat, tensors, precision)
    return path


def _converts(module: nn.Module, dtype: torch.dtype, precision: str) -> bool:
    """Whether a float32 network becomes one of `dtype`. A network of another type is refused, never cast in silence."""
    found: dict[torch.dtype, str] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() or tensor.is_complex():
            found.setdefault(tensor.dtype, name)
    if set(found) <= {dtype}:
        return False
    if set(found) == {torch.float32}:
        return True
    name, other = next((n, t) for t, n in found.items() if t != dtype)
    own = next((p for p, t in TYPES.items() if getattr(torch, t) == other and len(found) == 1), None)
    remedy = f"give precision={own!r}, or convert it: model.float()" if own else "convert it first: model.float()"
    raise TargetError(
        f"{name} is {_short(other)}, and the export in {precision} takes networks that are float32"
        f"{'' if dtype == torch.float32 else f' or {_short(dtype)}'} throughout: {remedy}"
    )


def _held(
    graphs: Graphs, module: nn.Module, example: Example, precision: str, convert: torch.dtype | None, outputs: int
) -> GraphFile:
    given = example
    if convert is not None:
        module, given = _converted(module, convert), _cast(example, convert)
    try:
        graph, tensors, ordered = graphs.dump(module, given)
    except RuntimeError as error:
        raise TargetError(f"the network cannot be computed in {precision}: {one_line(error)}") from error
    # The arrays that are given have the example's own type, whatever the network computes in.
    edges = {name: array_of(t[:0] if t.dim() else t).dtype for name, t in _named(example).items()}
    return GraphFile(precision, _inputs(ordered, edges), outputs, graph, tensors)


def _converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    try:
        return duplicate(module).to(dtype)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise TargetError(
            f"{type(module).__name__} cannot be copied to become {_short(dtype)}: {one_line(error)}"
        ) from error


def _cast(example: Example, dtype: torch.dtype) -> Example:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    args, kwargs = pytree.tree_map(cast, (example.args, dict(example.kwargs)))
    return Example(args, kwargs, dynamic=example.dynamic)


def _named(example: Example) -> dict[str, torch.Tensor]:
    signature, tensors = signature_of(example)
    return dict(zip(signature.names, tensors, strict=True))


def _inputs(example: Example, edges: dict[str, Any]) -> tuple[Input, ...]:
    signature, tensors = signature_of(example)
    each = zip(signature.names, tensors, signature.batched, signature.moving, strict=True)
    at = dict(zip(signature.places, each, strict=True))
    return tuple(_input(value, at.get(place), edges) for place, value in enumerate(signature.leaves))


def _input(value: Any, named: tuple[str, torch.Tensor, bool, tuple[int, ...]] | None, edges: dict[str, Any]) -> Input:
    if named is None:
        if not isinstance(value, (bool, int, float, str, type(None))):
            raise TargetError(f"an input is a {type(value).__name__}, which a file cannot hold: give tensors")
        return Input(value=value)
    name, tensor, batched, moving = named
    dtype = str(edges[name])
    if dtype not in DTYPES:
        raise TargetError(f"{name} is {dtype}; a file takes {', '.join(DTYPES)}")
    shape = tuple(OPEN if d in moving else n for d, n in enumerate(tensor.shape))
    return Input(name, dtype, _short(tensor.dtype), shape, batched)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
