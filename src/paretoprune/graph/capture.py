"""From a user's network to an ATen graph: `torch.export` in eval mode on a copy, and what can go wrong there."""

from __future__ import annotations

import inspect
import linecache
import re
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from paretoprune.core.errors import CaptureError, DataError
from paretoprune.core.graph import Example
from paretoprune.graph.functional import functional
from paretoprune.graph.training import training_notes

MIN_BATCH = 2

_ASSERTIONS = frozenset(
    {
        "aten._assert_tensor_metadata.default",
        "aten._assert_scalar.default",
        "aten._assert_async.msg",
        "aten.sym_constrain_range.default",
        "aten.sym_constrain_range_for_size.default",
    }
)
"""What the exporter found out about the original sizes, types and devices; none of it binds a pruned network."""


@dataclass(frozen=True)
class Captured:
    """`module` runs the graph; its parameters have the user's names."""

    module: fx.GraphModule
    notes: tuple[str, ...]


def batched(example: Example) -> Example:
    """The example with at least two samples, so that nothing specialises on a batch of one."""

    def grow(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return torch.cat([value] * MIN_BATCH) if value.shape[0] == 1 else value

    args, kwargs = pytree.tree_map(grow, (example.args, dict(example.kwargs)))
    return Example(args, kwargs)


def capture(model: nn.Module, example: Example, dynamic: Any = None) -> Captured:
    """Export `model` (already a private copy) with dynamic batches. `dynamic`: input name -> dims, batch aside.

    The captured graph must give what the network gives on the example. Raises CaptureError, DataError.
    """
    example = batched(example)
    extra = _extra_dims(example, dynamic)
    expected, again = _run_once(model, example), _run_once(model, example)
    exported = _export(model, example, _dynamic_shapes(model, example, extra))
    module = exported.module()
    graph = module.graph
    for node in list(graph.nodes):
        if (node.op == "call_module" and node.target == "_guards_fn") or str(node.target) in _ASSERTIONS:
            graph.erase_node(node)
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output", "get_attr") or _writes(n))
    if _flat_signature(example, graph):
        graph.set_codegen(fx.graph.CodeGen())
    functional(graph)
    graph.lint()
    clean = fx.GraphModule(module, graph)
    notes = training_notes(model, example, clean)
    if not _equal(expected, again):
        return Captured(clean, (*notes, f"{type(model).__name__} gives random outputs in eval mode"))
    if not _equal(expected, run(clean, example)):
        raise CaptureError(
            f"the captured graph of {type(model).__name__} gives other values than the network: its forward "
            "depends on what a graph does not show, for instance on state that it changes; make forward free of it"
        )
    return Captured(clean, notes)


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op != "call_function" or (schema is not None and schema.is_mutable)


def _extra_dims(example: Example, dynamic: Any) -> dict[str, tuple[int, ...]]:
    """The dims of `dynamic` as numbers from 0."""
    tensors = dict(example.tensors())
    extra: dict[str, tuple[int, ...]] = {}
    for name, dims in (dynamic or {}).items():
        if name not in tensors:
            raise DataError(f"dynamic names '{name}', but the inputs are {sorted(tensors)}")
        ndim = tensors[name].ndim
        wrong = [d for d in dims if not -ndim <= d < ndim]
        if wrong:
            raise DataError(f"dynamic names dimension {wrong[0]} of '{name}', which has {ndim}")
        extra[name] = tuple(d % ndim for d in dims)
    return extra


def run(module: fx.GraphModule, example: Example) -> Any:
    """Call a captured graph on copies of the inputs, without gradients."""
    given = fresh(example)
    with torch.no_grad():
        return module(*given.args, **given.kwargs)


def fresh(example: Example) -> Example:
    """Copies of the inputs: a network may write into what it is given."""
    args, kwargs = pytree.tree_map(
        lambda v: v.detach().clone() if isinstance(v, torch.Tensor) else v, (example.args, dict(example.kwargs))
    )
    return Example(args, kwargs)


def _equal(a: Any, b: Any) -> bool:
    left, right = ([v for v in pytree.tree_leaves(t) if isinstance(v, torch.Tensor)] for t in (a, b))
    return len(left) == len(right) and all(
        x.shape == y.shape and x.dtype == y.dtype and torch.allclose(x, y, rtol=1e-3, atol=_slack(x), equal_nan=True)
        for x, y in zip(left, right, strict=True)
    )


def _slack(values: torch.Tensor) -> float:
    finite = values[torch.isfinite(values)] if values.is_floating_point() else values[:0]
    return 1e-4 * float(finite.abs().max()) if finite.numel() else 0.0


def _flat_signature(example: Example, graph: fx.Graph) -> bool:
    """Can the graph be called with plain positional and keyword tensors, and does it give a plain tensor?"""
    names = [str(n.target) for n in graph.nodes if n.op == "placeholder"]
    plain = all(isinstance(v, torch.Tensor) for v in (*example.args, *example.kwargs.values()))
    plain = plain and set(names[len(example.args) :]) == set(example.kwargs)
    output = next(n for n in graph.nodes if n.op == "output")
    info = getattr(graph._codegen, "pytree_info", None)
    single = info is None or info.out_spec is None or info.out_spec.is_leaf()
    if plain and single and isinstance(output.args[0], (tuple, list)):
        output.args = (output.args[0][0],)
    return plain and single


def _run_once(model: nn.Module, example: Example) -> Any:
    """A wrong example must fail as the user's own call would, not deep inside the exporter."""
    given = fresh(example)
    try:
        with torch.no_grad():
            return model(*given.args, **given.kwargs)
    except Exception as error:
        shapes = ", ".join(f"{n}: {tuple(t.shape)} {t.dtype}" for n, t in example.tensors())
        raise CaptureError(
            f"{type(model).__name__} cannot run on the example ({shapes}): {_first_line(error)}"
            f"{_user_line(error)}; give an example of the shape and type that forward expects"
        ) from error


def _export(model: nn.Module, example: Example, shapes: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            given = fresh(example)
            return torch.export.export(model, given.args, dict(given.kwargs), dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise CaptureError(_explain(model, error)) from error


def _dynamic_shapes(model: nn.Module, example: Example, extra: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """By the names of forward's parameters: dimension 0 of every tensor, and the dims of `extra`."""
    names = {id(tensor): name for name, tensor in example.tensors()}

    def leaf(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        return dict.fromkeys((0, *extra.get(names[id(value)], ())), torch.export.Dim.DYNAMIC)

    bound = inspect.signature(model.forward).bind(*example.args, **example.kwargs)
    return {name: pytree.tree_map(leaf, value) for name, value in bound.arguments.items()}


def _explain(model: nn.Module, error: BaseException) -> str:
    text = str(error)
    name = type(model).__name__
    where = _user_line(error)
    if "Could not guard on data-dependent expression" in text or "data-dependent" in text:
        return (
            f"{name} cannot be captured: a branch depends on the data{where}; "
            "replace the branch by torch.where, or give pp.trace the submodules that do not branch"
        )
    if re.search(r"specialized|Constraints violated|marked .* as dynamic", text):
        return (
            f"{name} cannot be captured with any batch size: its forward fixes a size that must stay dynamic "
            f"({_specialised(text)}){where}; use x.shape[0] or -1 instead of a number"
        )
    return f"{name} cannot be captured: {_first_line(error)}{where}"


def _specialised(text: str) -> str:
    for line in text.splitlines():
        if "specialized" in line or "constant" in line:
            return line.strip(" -")[:200]
    return text.strip().splitlines()[0][:200]


def _user_line(error: BaseException) -> str:
    """A suffix ", at file:line: code" for the innermost frame that is not in torch or in this package."""
    text = str(error)
    found = re.findall(r'File "([^"]+)", line (\d+), in (\w+)\n\s+(.+)', text)
    frames = [(f, int(n), code) for f, n, _, code in found]
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append((code.co_filename, trace.tb_lineno, ""))
        trace = trace.tb_next
    user = [f for f in frames if "/torch/" not in f[0] and "/paretoprune/" not in f[0] and not f[0].startswith("<")]
    if not user:
        return ""
    file, line, source = user[-1]
    if not source:
        source = linecache.getline(file, line).strip()
    return f", at {file}:{line}: {source}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:240]}" if lines else type(error).__name__
