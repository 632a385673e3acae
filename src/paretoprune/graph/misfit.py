"""Why a network does not take an example: another call, another type, or no batch dimension."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from paretoprune.core.graph import Example
from paretoprune.graph.inputs import mapped
from paretoprune.graph.locate import attempt

_SAMPLES = 5
_LONGEST = 200
"""Characters of a signature."""


def misfit(model: nn.Module, example: Example) -> str:
    """What is wrong with the example, and what helps; empty where nothing better is known than what forward raised."""
    return _call(model, example) or without_batch(model, example) or _dtype(model, example)


def without_batch(model: nn.Module, example: Example) -> str:
    """A sentence where the network takes the example as one sample of several, and gives as many; else empty."""
    several = mapped(example, lambda v: v.detach().unsqueeze(0).repeat(_SAMPLES, *[1] * v.ndim))
    output, error = attempt(model, several)
    given = [v for v in pytree.tree_leaves(output) if isinstance(v, torch.Tensor)]
    if error is not None or not given or any(not v.ndim or v.shape[0] != _SAMPLES for v in given):
        return ""
    name, tensor = next((n, t) for n, t in example.tensors())
    shape = tuple(tensor.shape)
    return (
        f"it has no batch dimension: dimension 0 of every input counts samples, {name} is one sample of shape {shape}; "
        f"give {(1, *shape)} with .unsqueeze(0)"
    )


def _call(model: nn.Module, example: Example) -> str:
    """The number or the names of the inputs are not forward's."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(*example.args, **example.kwargs)
    except TypeError as error:
        return (
            f"forward takes ({_named(signature)}), the example gives {_given(example)} ({error}); give a tuple of "
            "positional inputs or a dict of keyword inputs"
        )
    return ""


def _named(signature: inspect.Signature) -> str:
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    text = str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))[1:-1]
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _given(example: Example) -> str:
    parts = [f"{len(example.args)} positional input(s)"] if example.args else []
    parts += [f"keyword(s) {', '.join(example.kwargs)}"] if example.kwargs else []
    return " and ".join(parts)


def _dtype(model: nn.Module, example: Example) -> str:
    """Floating inputs of another type than every floating parameter, where the network takes the parameters' type."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    other = next(((n, t.dtype) for n, t in example.tensors() if t.dtype not in types), None)
    if len(types) != 1 or other is None or other[1].is_complex:
        return ""
    (wanted,) = types

    def converted(value: Any) -> Any:
        return value.to(wanted) if value.dtype.is_floating_point or value.dtype == other[1] else value

    if attempt(model, mapped(example, converted))[1] is not None:
        return ""
    return f"{other[0]} is {other[1]} and the parameters are {wanted}; convert one with .to({wanted})"
