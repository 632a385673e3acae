"""Batch norms with fixed statistics become part of the layer before them, as they do in an exported file."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from paretoprune.core.copies import duplicate
from paretoprune.graph.surgery import attach

_OUTPUTS_AT = {
    "aten.conv1d.default": 0,
    "aten.conv2d.default": 0,
    "aten.conv2d.padding": 0,
    "aten.conv3d.default": 0,
    "aten.linear.default": 0,
}


def fold_norms(module: fx.GraphModule) -> fx.GraphModule:
    """A copy: w' = w γ / √(σ² + ε), b' = (b − μ) γ / √(σ² + ε) + β (Jacob et al. 2018, eq. 14).

    Weights keep their names; a layer without a bias gets one called after its weight. A layer that is read elsewhere,
    or whose weight is, keeps its norm.
    """
    copy = duplicate(module)
    for norm in [n for n in copy.graph.nodes if str(n.target) == "aten.batch_norm.default"]:
        _fold(copy, norm)
    copy.graph.eliminate_dead_code()
    copy.delete_all_unused_submodules()
    copy.recompile()
    return copy


def _fold(module: fx.GraphModule, norm: fx.Node) -> None:
    layer: Any = norm.args[0]
    if str(layer.target) not in _OUTPUTS_AT or len(layer.users) > 1:
        return
    weight = layer.args[1]
    bias = layer.args[2] if len(layer.args) > 2 else None
    parts = [weight, *([] if bias is None else [bias])]
    if any(n.op != "get_attr" or _uses(module, n) > 1 for n in parts):
        return
    if any(not isinstance(n, fx.Node) or n.op != "get_attr" for n in norm.args[3:5]):
        return
    gamma, beta, mean, var = (None if n is None else _tensor(module, n).double() for n in norm.args[1:5])
    scale = (1.0 if gamma is None else gamma) / torch.sqrt(var + float(norm.args[7]))  # type: ignore[operator, arg-type]
    old = _tensor(module, weight)
    folded = old.double() * scale.reshape(-1, *[1] * (old.ndim - 1))
    before = 0.0 if bias is None else _tensor(module, bias).double()
    moved = (before - mean) * scale + (0.0 if beta is None else beta)  # type: ignore[operator]
    name = str(bias.target) if bias is not None else _bias_name(str(weight.target))
    _put(module, str(weight.target), folded.to(old.dtype))
    _put(module, name, moved.to(old.dtype))
    if bias is None:
        with module.graph.inserting_before(layer):
            bias = module.graph.get_attr(name)
    layer.args = (layer.args[0], weight, bias, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    module.graph.erase_node(norm)


def _uses(module: fx.GraphModule, node: fx.Node) -> int:
    return sum(len(n.users) for n in module.graph.nodes if n.op == "get_attr" and n.target == node.target)


def _tensor(module: fx.GraphModule, node: Any) -> torch.Tensor:
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value.detach()  # type: ignore[no-any-return]


def _put(module: nn.Module, name: str, value: torch.Tensor) -> None:
    attach(module, name, nn.Parameter(value))


def _bias_name(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias" if weight.endswith("weight") else f"{weight}.bias"
