"""Which parameters are the weights of linear layers and convolutions, and may hold zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from paretoprune.graph.model import shared_storage
from paretoprune.graph.op import bind
from paretoprune.graph.rules import RULES
from paretoprune.graph.traced import tensors_of


@dataclass(frozen=True)
class LayerWeights:
    """`weights`: by name (tied ones once), outputs first. `left`: other parameters of two dims and more, and why."""

    weights: dict[str, nn.Parameter]
    left: dict[str, str]


def layer_weights(module: fx.GraphModule, captured: nn.Module | None = None) -> LayerWeights:
    """In the order in which the graph reads them. A weight that anything else reads, too, is left.

    `captured`: the network that the graph is of, whose tensors may overlap in memory; the graph's do not.
    """
    names: dict[int, str] = {}
    readers: dict[int, list[tuple[fx.Node, fx.Node]]] = {}
    tensors = tensors_of(module)
    for node in module.graph.nodes:
        tensor = tensors.get(str(node.target)) if node.op == "get_attr" else None
        if tensor is not None:
            names.setdefault(id(tensor), str(node.target))
            readers.setdefault(id(tensor), []).extend((node, user) for user in node.users)
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), name)
    shared = {} if captured is None else shared_storage(captured)
    found = LayerWeights({}, {})
    for key, name in names.items():
        weight = tensors[name]
        if not isinstance(weight, nn.Parameter) or weight.ndim < 2:
            continue
        why = shared.get(name, "") or _why_not(weight, readers.get(key, ()))
        if why:
            found.left[name] = why
        else:
            found.weights[name] = weight
    return found


def _why_not(weight: torch.Tensor, readers: Sequence[tuple[fx.Node, fx.Node]]) -> str:
    if not weight.is_floating_point():
        return f"its type is {weight.dtype}"
    if not readers:
        return "no operator of the graph reads it"
    for node, user in readers:
        rule = RULES.get(str(user.target))
        args = bind(user) if rule is not None and rule.layer is not None else {}
        if args.get("weight") is not node or args.get("input") is node:
            return f"{str(user.target).removesuffix('.default')} reads it, which is no linear layer or convolution"
        if "output_padding" in args:
            return "its convolution is transposed"
    return ""
