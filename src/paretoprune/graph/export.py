"""One call of `torch.export`, cleaned up and compared with the network at several sizes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from paretoprune.core.graph import Example
from paretoprune.graph.explain import ANY_SIZE, SizeError, StateError, conditions
from paretoprune.graph.fold import fold_constants
from paretoprune.graph.functional import functional
from paretoprune.graph.inline import inline_regions
from paretoprune.graph.inputs import (
    Marked,
    dynamic_shapes,
    fresh,
    leaves_of,
    named_keywords,
    names_of,
    resized,
    shapes_of,
    sizes_at,
    symbols_of,
    values_at,
)
from paretoprune.graph.locate import attempt, shuffled
from paretoprune.graph.opaque import Unit, hidden, reveal
from paretoprune.graph.plain import plain_layers
from paretoprune.graph.shared import unwritten

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
_TRIED = (*range(3, 18), 31, 32, 33, 63, 64, 65, 100, 128, 129, 255, 256, 257, 512, 513, 1000, 1024, 1025, 4096, 4097)
"""Sizes at which the exporter's conditions are evaluated."""
_LARGEST_RUN = 66
"""The largest of them at which the network is really run."""


@dataclass(frozen=True)
class Export:
    module: fx.GraphModule
    notes: list[str]


def export(
    model: nn.Module,
    example: Example,
    dims: Marked,
    expected: Any,
    units: Mapping[str, Unit],
    extra: Mapping[int, frozenset[int]],
    *,
    part: bool,
) -> Export:
    """The graph of `model`, whose output on the example is `expected`. Raises whatever the exporter raises.

    SizeError where it does not hold for other sizes, StateError where it gives other values than the network.
    """
    with _quiet(), hidden(model, units), plain_layers(model), named_keywords(model, example):
        given = fresh(example)
        exported = torch.export.export(
            model, given.args, dict(given.kwargs), dynamic_shapes=dynamic_shapes(model, given, dims), strict=False
        )
        module: Any = exported.module()
    guard = _guard(module)
    inline_regions(module)
    reveal(module, model, units)
    clean = _cleaned(module, example)
    _dynamic(clean, example, dims, extra, part=part)
    got = run(clean, example)
    if not equal(expected, got):
        again, _ = attempt(model, example)
        if not equal(again, got):
            if equal(expected, again) or equal(got, run(clean, example)):
                raise StateError
            return Export(clean, [f"{type(model).__name__} gives random outputs in eval mode"])
        expected = again  # what the network had remembered was out of date
    return Export(clean, _Sizes(model, clean, example, expected, guard).problems())


def run(module: fx.GraphModule, example: Example) -> Any:
    """Call a captured graph on copies of the inputs, without gradients."""
    given = fresh(example)
    with torch.no_grad(), unwritten(module.parameters()):
        return module(*given.args, **given.kwargs)


def _other_values(model: nn.Module, module: fx.GraphModule, example: Example) -> None:
    """StateError if the two differ on other values: a `try` may hide from the exporter that the data decide."""
    other = shuffled(example, times=-1)
    expected, error = attempt(model, other)
    if error is not None:
        return
    try:
        same = equal(expected, run(module, other))
    except (RuntimeError, IndexError, ValueError, TypeError) as failure:
        raise StateError from failure
    if not same:
        raise StateError


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs and prints whole graphs where it fails; the error says it all."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _cleaned(module: fx.GraphModule, example: Example) -> fx.GraphModule:
    graph = module.graph
    for node in list(graph.nodes):
        if (node.op == "call_module" and node.target == "_guards_fn") or str(node.target) in _ASSERTIONS:
            graph.erase_node(node)
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output", "get_attr") or _writes(n))
    if _flat_signature(example, graph):
        graph.set_codegen(fx.graph.CodeGen())
    functional(graph)
    fold_constants(module)
    graph.lint()
    return fx.GraphModule(module, graph)


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op != "call_function" or (schema is not None and schema.is_mutable)


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


def equal(a: Any, b: Any) -> bool:
    """Do two outputs hold the same tensors, up to rounding?"""
    left, right = ([v for v in pytree.tree_leaves(t) if isinstance(v, torch.Tensor)] for t in (a, b))
    return len(left) == len(right) and all(
        x.shape == y.shape and x.dtype == y.dtype and torch.allclose(x, y, rtol=1e-3, atol=_slack(x), equal_nan=True)
        for x, y in zip(left, right, strict=True)
    )


def _finite(output: Any) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor))


def _slack(values: torch.Tensor) -> float:
    finite = values[torch.isfinite(values)] if values.is_floating_point() else values[:0]
    return 1e-4 * float(finite.abs().max()) if finite.numel() else 0.0


# -- other sizes -----------------------------------------------------------------------------------------------------

Guard = Callable[[Example], str]
"""The condition on sizes that does not hold for these inputs, in the exporter's words; empty if all hold."""


def _guard(module: Any) -> Guard:
    checks = getattr(module, "_guards_fn", None)
    if checks is None:
        return lambda example: ""

    def broken(example: Example) -> str:
        try:
            checks(*leaves_of(example))
        except AssertionError as error:
            return conditions(str(error).removeprefix("Guard failed: "))
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NameError):
            return ""  # conditions on what a graph cannot hold; the comparisons below need none of them
        return ""

    return broken


def _dynamic(
    module: fx.GraphModule, example: Example, dims: Marked, extra: Mapping[int, frozenset[int]], *, part: bool
) -> None:
    """SizeError if a size that must be dynamic came out fixed. Some inputs may be without a batch, not all."""
    shapes, names = shapes_of(module), names_of(example)
    if not symbols_of(shapes, batch=True) and any(0 in d for d in dims) and not part:
        size = next(shapes[i][0] for i, d in enumerate(dims) if 0 in d)
        raise SizeError(f"its forward fixes the batch size (to {size}), which must stay dynamic", ANY_SIZE)
    for i, wanted in enumerate(dims if part else [extra.get(i, frozenset()) for i in range(len(dims))]):
        for d in wanted:
            if isinstance(shapes[i][d], int):
                why = f"its forward fixes dimension {d} of '{names[i]}', which must stay dynamic, to {shapes[i][d]}"
                raise SizeError(why, ANY_SIZE.replace("[0]", f"[{d}]"))


class _Sizes:
    """Compares the graph with the network at other sizes than the example's."""

    def __init__(self, model: nn.Module, module: fx.GraphModule, example: Example, expected: Any, guard: Guard):
        self.model, self.module, self.example, self.expected, self.guard = model, module, example, expected, guard
        self.shapes = shapes_of(module)
        self.base = values_at(self.shapes, example)
        self.batch = [s for s in symbols_of(self.shapes, batch=True) if s in self.base]
        self.others = [s for s in symbols_of(self.shapes, batch=False) if s in self.base]

    def problems(self) -> list[str]:
        """Sentences on sizes for which the graph is not known to hold. Raises SizeError where it is known not to."""
        if not self._elsewhere():
            _other_values(self.model, self.module, self.example)
            if not self.batch:
                return []
            self._another_batch()
        if any(self.base[s] > 1 for s in self.batch):
            self._compare(dict.fromkeys(self.batch, 1))
        notes = []
        for symbols in ([self.batch] if self.batch else []) + [[s] for s in self.others]:
            if note := self._conditions(symbols):
                notes.append(note)
        return notes

    def at(self, values: Mapping[Any, int]) -> Example:
        return resized(self.example, sizes_at(self.shapes, {**self.base, **values}))

    def _elsewhere(self) -> bool:
        """Does the graph hold at another batch, with other lengths and on other values, all at once?

        One run of each then stands for several; where it does not hold, they say one by one what is wrong.
        """
        if not self.batch:
            return False
        other = shuffled(self.at({s: self.base[s] + 1 for s in (*self.batch, *self.others)}), times=-1)
        expected, error = attempt(self.model, other)
        if error is not None or not _finite(expected):
            return False
        try:
            return equal(expected, run(self.module, other))
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False

    def _another_batch(self) -> None:
        """At least one other batch size must work, with other lengths too where the network takes them."""
        raised: Exception | None = None
        longer = {s: self.base[s] + 1 for s in self.others}
        for more in ({s: self.base[s] + 1 for s in self.batch}, {s: self.base[s] * 2 for s in self.batch}):
            for values in ({**more, **longer}, more) if longer else (more,):
                error = self._compare(values)
                if error is None:
                    return
                raised = raised or error
        why = "its forward fails with another batch size than the example's"
        raise SizeError(why, ANY_SIZE, raised)

    def _compare(self, values: Mapping[Any, int]) -> Exception | None:
        """What the network raises at these sizes, if it does. SizeError if the graph differs from it there."""
        inputs = self.at(values)
        expected, error = attempt(self.model, inputs)
        if error is not None:
            return error
        got: Any = None
        failure: Exception | None = None
        try:
            got = run(self.module, inputs)
        except (RuntimeError, IndexError, ValueError, TypeError) as raised:
            failure = raised
        if failure is not None or not equal(expected, got):
            if not equal(self.expected, attempt(self.model, self.example)[0]):
                raise StateError
            sizes = ", ".join(f"{n}: {tuple(t.shape)}" for n, t in inputs.tensors())
            broken = self.guard(_shapeless(inputs))
            reason = f" (the graph holds where {broken})" if broken else ""
            raise SizeError(
                f"its forward takes another way at other sizes than the example's ({sizes}){reason}",
                "write it without a branch on a size, or give an example of the size that you use",
                failure,
            )
        return None

    def _conditions(self, symbols: list[Any]) -> str:
        """Look for the smallest size at which the exporter's conditions do not hold, and compare there."""
        for size in _TRIED:
            values = dict.fromkeys(symbols, size)
            broken = self.guard(_shapeless(self.example, sizes_at(self.shapes, {**self.base, **values})))
            if broken and size > _LARGEST_RUN:
                return f"the graph is known to hold where {broken} only"
            if broken:
                self._compare(values)
        return ""


def _shapeless(example: Example, sizes: Any = None) -> Example:
    """Inputs of these sizes that take no memory."""
    given = Example(*pytree.tree_map(_hollow, (example.args, dict(example.kwargs))))
    return given if sizes is None else resized(given, sizes)


def _hollow(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, torch.Tensor) else value
