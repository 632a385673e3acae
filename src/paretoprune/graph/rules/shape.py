"""Layout: view, reshape, permute, expand, and what only copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from paretoprune.graph.algebra import UNIT, Expr, multiply
from paretoprune.graph.op import DeadView, Dims, Op, Resize, State


def same(op: Op) -> Dims:
    return op.dims_of(op.args["self"] if "self" in op.args else op.args["input"])


def regroup(op: Op) -> Dims:
    """view, reshape, flatten, unflatten: the same row-major positions, grouped anew."""
    before, shape = op.dims_of(op.args["self"]), op.out_shape
    after = [op.fresh(s) for s in shape]
    for left, right in _groups([d.size for d in before], list(shape)):
        whole = multiply(*(before[i] for i in left))
        op.axes.unify(whole, multiply(*(after[i] for i in right)), f"a reshape cuts across it at {op.where}")
    return tuple(after)


def _groups(before: list[int], after: list[int]) -> list[tuple[list[int], list[int]]]:
    """The finest grouping of the dims on both sides with equal products."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left: list[int] = []
        right: list[int] = []
        x = y = 1
        while not left or not right or x != y:
            if i < len(before) and (x <= y or j == len(after)):
                x *= before[i]
                left.append(i)
                i += 1
            elif j < len(after):
                y *= after[j]
                right.append(j)
                j += 1
            else:
                break
        groups.append((left, right))
    return groups


def regroup_resize(r: Resize) -> None:
    """The size argument is named `size`, `shape` or, for unflatten, `sizes`."""
    args = r.op.args
    name = next(k for k in ("size", "shape", "sizes") if k in args)
    exprs = list(r.op.out)
    if name == "sizes":
        start = r.op.dim_index(args["dim"], len(r.op.dims_of(args["self"])))
        exprs = exprs[start : start + len(args["sizes"])]
    r.set(**{name: r.sizes(r.get(name), exprs, inferred=True)})


def permute(op: Op) -> Dims:
    dims = op.dims_of(op.args["self"])
    return tuple(dims[op.dim_index(d, len(dims))] for d in op.args["dims"])


def reverse(op: Op) -> Dims:
    """x.T"""
    return tuple(reversed(op.dims_of(op.args["self"])))


def transpose(op: Op) -> Dims:
    """transpose names its dims dim0 and dim1, swapaxes axis0 and axis1; mT swaps the last two."""
    dims = list(op.dims_of(op.args["self"]))
    if len(dims) > 1:
        names = ("axis0", "axis1") if "axis0" in op.args else ("dim0", "dim1")
        i, j = (op.dim_index(op.args.get(k, d), len(dims)) for k, d in zip(names, (-2, -1), strict=True))
        dims[i], dims[j] = dims[j], dims[i]
    return tuple(dims)


def movedim(op: Op) -> Dims:
    dims = op.dims_of(op.args["self"])
    source, to = ([v] if isinstance(v, int) else list(v) for v in (op.args["source"], op.args["destination"]))
    rest = [i for i in range(len(dims)) if i not in [s % len(dims) for s in source]]
    result: list[int | None] = [None] * len(dims)
    for s, d in zip(source, to, strict=True):
        result[d % len(dims)] = s % len(dims)
    return tuple(dims[rest.pop(0) if i is None else i] for i in result)


def unsqueeze(op: Op) -> Dims:
    dims = list(op.dims_of(op.args["self"]))
    dims.insert(int(op.args["dim"]) % (len(dims) + 1), UNIT)
    return tuple(dims)


def squeeze(op: Op) -> Dims:
    """Only dims that are 1 in the original go; `squeeze_resize` names them so that a pruned width of 1 stays."""
    dims = op.dims_of(op.args["self"])
    return tuple(d for i, d in enumerate(dims) if i not in _squeezed(op))


def _squeezed(op: Op) -> list[int]:
    shape = op.shape_of(op.args["self"])
    named = op.args.get("dim")
    if named is None:
        wanted = list(range(len(shape)))
    else:
        wanted = [op.dim_index(d, len(shape)) for d in ([named] if isinstance(named, int) else named)]
    return [i for i in wanted if shape[i] == 1]


def squeeze_resize(r: Resize) -> None:
    r.node.target = torch.ops.aten.squeeze.dims
    r.node.args = (r.node.args[0], _squeezed(r.op))
    r.node.kwargs = {}


def expand(op: Op) -> Dims:
    """A dim of size 1 that is expanded is born here: an axis whose positions are copies."""
    before, shape = op.dims_of(op.args["self"]), op.out_shape
    padded: tuple[Expr, ...] = (*(UNIT,) * (len(shape) - len(before)), *before)
    return tuple(
        d if d.size == s else op.memo.setdefault(str(i), op.fresh(s))
        for i, (d, s) in enumerate(zip(padded, shape, strict=True))
    )


def expand_dead(view: DeadView) -> State:
    state = view.state(view.op.args["self"])
    return State.UNKNOWN if state is None else state


def expand_resize(r: Resize) -> None:
    r.set(size=r.sizes(r.get("size"), r.op.out))


def expand_as(op: Op) -> Dims:
    """The result has the other operand's shape; its own dims of size 1 follow the other's axes."""
    mine, other = op.dims_of(op.args["self"]), op.dims_of(op.args["other"])
    shift = len(other) - len(mine)
    for i, d in enumerate(mine):
        if d.size != 1:
            op.unify(d, other[i + shift])
    return other


def view_as(op: Op) -> Dims:
    """The sizes come from the other operand, so both must regroup in the same way."""
    result = regroup(op)
    for mine, other in zip(result, op.dims_of(op.args["other"]), strict=True):
        op.unify(mine, other)
    return result


def view_as_dead(view: DeadView) -> State:
    return view.join([view.op.args["self"]])


def repeat(op: Op) -> Dims:
    """repeat and tile: copies side by side are a new outer axis, as in expand."""
    before, shape = op.dims_of(op.args["self"]), op.out_shape
    padded: tuple[Expr, ...] = (*(UNIT,) * (len(shape) - len(before)), *before)
    return tuple(_repeated(op, i, d, s) for i, (d, s) in enumerate(zip(padded, shape, strict=True)))


def _repeated(op: Op, at: int, dim: Expr, size: int) -> Expr:
    if dim.size == size:
        return dim
    return multiply(op.memo.setdefault(str(at), op.fresh(size // dim.size)), dim)


def repeat_resize(r: Resize) -> None:
    name = "repeats" if "repeats" in r.op.args else "dims"
    counts = r.get(name)
    exprs = [r.op.memo.get(str(i), UNIT) for i in range(len(r.op.out))]
    r.set(**{name: r.sizes(counts, exprs[len(exprs) - len(counts) :])})


_METHOD_OF = {
    "aten.view.default": "view",
    "aten.reshape.default": "reshape",
    "aten.expand.default": "expand",
    "aten.repeat.default": "repeat",
    "aten.unflatten.int": "unflatten",
    "aten.new_zeros.default": "new_zeros",
    "aten.new_ones.default": "new_ones",
}
SIZE_METHODS = frozenset({"size", *_METHOD_OF.values()})
_FUNCTION_OF: dict[str, Callable[..., torch.Tensor]] = {
    "aten.zeros.default": torch.zeros,
    "aten.ones.default": torch.ones,
    "aten.full.default": torch.full,
    "aten.arange.default": torch.arange,
    "aten.arange.start": torch.arange,
    "aten.arange.start_step": torch.arange,
}
SIZE_FUNCTIONS = {f"torch.{function.__name__}": function for function in _FUNCTION_OF.values()}


def size_methods(graph: fx.Graph) -> None:
    """Sizes read and written by tensor methods: a tracer keeps those dynamic, but not the raw operators."""
    for node in list(graph.nodes):
        name = str(node.target) if node.op == "call_function" else ""
        if name == "aten.sym_size.int":
            _replace(graph, node, graph.call_method, "size", node.args)
        elif any(isinstance(s, fx.Node) for s in _size_list(node)) and name in _FUNCTION_OF:
            _replace(graph, node, graph.call_function, _FUNCTION_OF[name], node.args)
        elif any(isinstance(s, fx.Node) for s in _size_list(node)) and name in _METHOD_OF:
            spread = _METHOD_OF[name] in ("view", "reshape", "expand", "repeat")
            args = (node.args[0], *_size_list(node)) if spread else node.args
            _replace(graph, node, graph.call_method, _METHOD_OF[name], args)


def _size_list(node: fx.Node) -> tuple[Any, ...]:
    if str(node.target).startswith("aten.arange."):
        return tuple(node.args)
    return next((tuple(a) for a in node.args if isinstance(a, (list, tuple))), ())


def _replace(graph: fx.Graph, node: fx.Node, make: Callable[..., fx.Node], target: Any, args: tuple[Any, ...]) -> None:
    with graph.inserting_before(node):
        new = make(target, args, {k: v for k, v in node.kwargs.items() if k in ("dtype", "device")})
    new.meta = dict(node.meta)
    name = node.name
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    new.name = name
