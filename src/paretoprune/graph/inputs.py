"""Inputs of a network at other sizes than the example's."""

from __future__ import annotations

import dataclasses
import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from paretoprune.core.errors import DataError
from paretoprune.core.graph import Example

MIN_BATCH = 2
"""So that nothing specialises on a batch of one."""

Sizes = Mapping[int, Mapping[int, int]]
"""New sizes by the number of a leaf (in the order of `leaves_of`), then by dimension."""
Marked = tuple[frozenset[int], ...]
"""Per leaf the dimensions whose size is dynamic."""


def leaves_of(example: Example) -> list[Any]:
    return pytree.tree_leaves((example.args, dict(example.kwargs)))


def _with_leaves(example: Example, leaves: Sequence[Any]) -> Example:
    args, kwargs = pytree.tree_unflatten(leaves, pytree.tree_structure((example.args, dict(example.kwargs))))
    return Example(args, kwargs)


def mapped(example: Example, change: Callable[[torch.Tensor], torch.Tensor]) -> Example:
    """The example with every tensor changed."""
    return _with_leaves(example, [change(v) if isinstance(v, torch.Tensor) else v for v in leaves_of(example)])


def fresh(example: Example) -> Example:
    """Copies of the inputs: a network may write into what it is given."""
    return mapped(example, lambda v: v.detach().clone())


def resized(example: Example, sizes: Sizes) -> Example:
    """The last entry is repeated, so that what is in order stays so, or entries are cut off at the end."""
    leaves = leaves_of(example)
    for i, dims in sizes.items():
        for dim, size in dims.items():
            old = leaves[i].shape[dim]
            if size != old:
                leaves[i] = leaves[i].index_select(dim, torch.arange(size, device=leaves[i].device).clamp(max=old - 1))
    return _with_leaves(example, leaves)


def registered(tree: Any) -> tuple[str, ...]:
    """Make dataclasses that hold tensors known to torch; a sentence for each."""
    notes = []
    stack = pytree.tree_leaves(tree)
    while stack:
        value = stack.pop()
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            torch.export.register_dataclass(type(value))
            notes.append(f"the dataclass {type(value).__name__} was registered with torch.export")
            stack += pytree.tree_leaves(value)
    return tuple(notes)


def in_order(model: nn.Module, example: Example) -> Example:
    """Keywords in the order of forward's signature, in which the exporter lists them."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return example
    names = [n for n in signature.parameters if n in example.kwargs]
    names += [n for n in example.kwargs if n not in names]
    return Example(example.args, {n: example.kwargs[n] for n in names})


def batches_of(example: Example) -> list[int]:
    """Numbers of the leaves that have a first dimension."""
    return [i for i, v in enumerate(leaves_of(example)) if isinstance(v, torch.Tensor) and v.ndim]


def grown(example: Example) -> Iterator[Example]:
    """The example with at least two samples: the likeliest way first, and the example itself last.

    A first dimension of one beside larger ones is rather broadcast than a batch.
    """
    leaves, first = leaves_of(example), batches_of(example)
    if any(leaves[i].shape[0] >= MIN_BATCH for i in first):
        yield example
        if any(leaves[i].shape[0] == 1 for i in first):
            yield resized(example, {i: {0: leaves[i].shape[0] * MIN_BATCH} for i in first})
        return
    yield resized(example, {i: {0: MIN_BATCH} for i in first})
    for left in first if len(first) > 1 else ():
        yield resized(example, {i: {0: MIN_BATCH} for i in first if i != left})
    yield example


def extra_dims(example: Example, dynamic: Mapping[str, Any] | None) -> dict[int, frozenset[int]]:
    """The dims of `dynamic` as numbers from 0, by the number of the leaf. Raises DataError."""
    number = {id(v): i for i, v in enumerate(leaves_of(example)) if isinstance(v, torch.Tensor)}
    tensors = dict(example.tensors())
    extra: dict[int, frozenset[int]] = {}
    for name, dims in (dynamic or {}).items():
        if name not in tensors:
            raise DataError(f"dynamic names '{name}', but the inputs are {sorted(tensors)}")
        ndim = tensors[name].ndim
        wrong = [d for d in dims if not -ndim <= d < ndim]
        if wrong:
            raise DataError(f"dynamic names dimension {wrong[0]} of '{name}', which has {ndim}")
        extra[number[id(tensors[name])]] = frozenset(d % ndim for d in dims)
    return extra


def marked(example: Example, extra: Mapping[int, frozenset[int]]) -> Marked:
    """The first dimension of every tensor that has one, and `extra`."""
    first = set(batches_of(example))
    return tuple(
        (frozenset({0}) if i in first else frozenset()) | extra.get(i, frozenset())
        for i in range(len(leaves_of(example)))
    )


def dynamic_shapes(model: nn.Module, example: Example, dims: Marked) -> dict[str, Any]:
    """By the names of forward's parameters. The exporter itself finds out which of them must be fixed."""
    numbers = iter(range(len(dims)))

    def leaf(value: Any) -> Any:
        chosen = dims[next(numbers)]
        if not isinstance(value, torch.Tensor) or not chosen:
            return None
        hints = torch.export.Dim
        return {d: hints.AUTO if value.shape[d] > 1 else hints.STATIC for d in chosen}

    bound = inspect.signature(model.forward).bind(*example.args, **example.kwargs)
    return {name: _mapped(leaf, value) for name, value in bound.arguments.items()}


def _mapped(leaf: Callable[[Any], Any], value: Any) -> Any:
    """Structures as the exporter wants them described: a class that is none of the built-in ones as a list."""
    children, spec = pytree.tree_flatten(value, is_leaf=lambda v: v is not value)
    if spec.is_leaf():
        return leaf(value)
    shapes = [_mapped(leaf, child) for child in children]
    builtin = isinstance(value, (list, tuple)) or type(value) in (dict, OrderedDict, defaultdict)
    return pytree.tree_unflatten(shapes, spec) if builtin else shapes


@contextmanager
def named_keywords(model: nn.Module, example: Example) -> Iterator[None]:
    """Inside the block forward's signature lists what is given to its **keywords, which the exporter needs to know."""
    signature = inspect.signature(model.forward)
    kinds = inspect.Parameter
    listed = [p for p in signature.parameters.values() if p.kind is not kinds.VAR_KEYWORD]
    extra = [n for n in example.kwargs if n not in {p.name for p in listed}]
    if not extra or len(listed) == len(signature.parameters):
        yield
        return
    inner = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    named = [kinds(n, kinds.KEYWORD_ONLY) for n in extra]
    forward.__signature__ = signature.replace(parameters=[*listed, *named])  # type: ignore[attr-defined]
    before = model.__dict__.get("forward")
    model.__dict__["forward"] = forward
    try:
        yield
    finally:
        del model.__dict__["forward"]
        if before is not None:
            model.__dict__["forward"] = before


def names_of(example: Example) -> list[str]:
    """Per leaf a name for sentences: "input", "input_1", or the keyword."""
    single = len(example.args) == 1 and not example.kwargs
    names = []
    for i, value in enumerate(example.args):
        names += [("input" if single else f"input_{i}")] * len(pytree.tree_leaves(value))
    for key, value in example.kwargs.items():
        names += [key] * len(pytree.tree_leaves(value))
    return names


# -- what the exporter found out -------------------------------------------------------------------------------------


def shapes_of(module: fx.GraphModule) -> list[tuple[Any, ...]]:
    """Per input leaf its dims: an int, or a sympy expression where the size is dynamic."""
    values = [n.meta.get("val") for n in module.graph.nodes if n.op == "placeholder"]
    return [tuple(_size(s) for s in v.shape) if isinstance(v, torch.Tensor) else () for v in values]


def _size(size: Any) -> Any:
    """An int also where the exporter fixed a size after it had given it a symbol."""
    expr = None if isinstance(size, int) else size.node.expr
    return size if expr is None else int(expr) if expr.is_number else expr


def symbols_of(shapes: Sequence[tuple[Any, ...]], *, batch: bool) -> list[Any]:
    """Symbols that first dimensions are made of, or all others."""
    first = {s for dims in shapes for e in dims[:1] if not isinstance(e, int) for s in e.free_symbols}
    every = {s for dims in shapes for e in dims if not isinstance(e, int) for s in e.free_symbols}
    return sorted(first if batch else every - first, key=str)


def sizes_at(shapes: Sequence[tuple[Any, ...]], values: Mapping[Any, int]) -> Sizes:
    """Sizes of the dynamic dims where the symbols have these values."""
    return {
        i: {d: int(e.subs(values)) for d, e in enumerate(dims) if not isinstance(e, int)}
        for i, dims in enumerate(shapes)
    }


def values_at(shapes: Sequence[tuple[Any, ...]], example: Example) -> dict[Any, int]:
    """The symbols' values on the example, where a dimension is a symbol alone."""
    leaves = leaves_of(example)
    return {
        e: int(leaves[i].shape[d])
        for i, dims in enumerate(shapes)
        for d, e in enumerate(dims)
        if not isinstance(e, int) and e.is_Symbol
    }


def per_sample(module: fx.GraphModule) -> tuple[int, ...]:
    """Per input leaf how many entries of the first dimension belong to one sample, 0 where it is fixed."""
    shapes = shapes_of(module)
    every = [*symbols_of(shapes, batch=True), *symbols_of(shapes, batch=False)]
    one = sizes_at(shapes, dict.fromkeys(every, 1))
    return tuple(one[i].get(0, 0) for i in range(len(shapes)))
