"""Factorised layers in the user's own class: an `nn.Sequential` of two layers stands in the place of one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from paretoprune.core.errors import FileError
from paretoprune.core.graph import Example
from paretoprune.graph.model import forget
from paretoprune.graph.rebuild import Rebuilt
from paretoprune.graph.rebuild_compare import difference
from paretoprune.graph.surgery import Cut
from paretoprune.graph.thin import ThinNames
from paretoprune.graph.traced import tensors_of

_REST = {"stride": 1, "padding": 0, "dilation": 1}
"""Settings of a convolution that does nothing in a dim."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def rebuilt_thin(whole: Rebuilt, cut: Cut, names: Sequence[ThinNames], example: Example) -> Rebuilt:
    """`whole`, which is nobody else's, with thin layers over the tensors of `cut`, if it then computes the same."""
    if whole.module is None:
        return whole
    paths = tuple(n.path for n in names)
    nameless = next((n.weight for n in names if not n.path), None)
    if nameless is not None:
        return Rebuilt(None, f"'{nameless}' was factorised and is not the weight of a layer of its own")
    modes = {path: module.training for path, module in whole.module.named_modules()}
    try:
        put_thin(whole.module, paths, tensors_of(cut.program.module))
    except FileError as error:
        return Rebuilt(None, str(error))
    if wrong := difference(whole.module, cut.program.module, example):
        return Rebuilt(None, f"two layers in the place of '{wrong.path or paths[0]}' do not do: {wrong.why}")
    forget(whole.module)
    for path, module in whole.module.named_modules():
        module.training = modes.get(path, modes.get(path.rpartition(".")[0], module.training))
    values = tuple(e for e in whole.edits.values if e.path not in paths)
    return replace(whole, edits=replace(whole.edits, values=values, thin=paths))


def put_thin(model: nn.Module, paths: Iterable[str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Change `model` in place; sizes are those of `tensors`, which it takes. Raises FileError."""
    modules = dict(model.named_modules())
    for path in paths:
        layer = modules.get(path) if path else None
        if layer is None:
            raise FileError(f"{type(model).__name__} has no layer '{path}'")
        owner, _, leaf = path.rpartition(".")
        modules[owner]._modules[leaf] = _pair(path, layer, tensors)


def _pair(path: str, layer: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Sequential:
    kind = type(layer)
    if kind not in (nn.Linear, *_CONVOLUTIONS):
        raise FileError(f"'{path}' is a {kind.__name__}, in whose place nn.Sequential may not stand")
    names = [f"{path}.0.weight", f"{path}.1.weight", *([f"{path}.1.bias"] if layer.bias is not None else [])]
    if missing := [n for n in names if n not in tensors]:
        raise FileError(f"'{missing[0]}' is not there to take the place of '{path}'")
    first, second = tensors[names[0]], tensors[names[1]]
    with torch.device("meta"):
        pair = _layers(path, layer, first.shape, second.shape)
    for (place, _), name in zip([*pair.named_parameters()], names, strict=True):
        value = nn.Parameter(tensors[name].detach(), requires_grad=tensors[name].requires_grad)
        pair[int(place[0])].register_parameter(place[2:], value)
    return pair.train(layer.training)


def _layers(path: str, layer: nn.Module, first: torch.Size, second: torch.Size) -> nn.Sequential:
    biased = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Sequential(nn.Linear(first[1], first[0], bias=False), nn.Linear(second[1], second[0], bias=biased))
    if not isinstance(layer, _CONVOLUTIONS) or layer.groups != 1 or layer.padding_mode != "zeros":
        raise FileError(f"'{path}' is a convolution with groups, or one that does not pad with zeros")
    like: Any = type(layer)
    here: dict[str, Any] = {k: getattr(layer, k) for k in _REST}
    there: dict[str, Any] = {}
    if math.prod(second[2:]) > 1:
        here, there = ({k: _at(getattr(layer, k), k, dim) for k in _REST} for dim in (0, 1))
    return nn.Sequential(
        like(first[1], first[0], tuple(first[2:]), **here, bias=False),
        like(second[1], second[0], tuple(second[2:]), **there, bias=biased),
    )


def _at(values: str | Sequence[int], name: str, dim: int) -> str | tuple[int, ...]:
    """The setting of one dim alone."""
    if isinstance(values, str):
        return values
    return tuple(v if i == dim else _REST[name] for i, v in enumerate(values))
