"""From a user's network to an ATen graph: `torch.export` in eval mode on a copy, in parts where it must be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from paretoprune.core.errors import CaptureError
from paretoprune.core.graph import Example
from paretoprune.graph.caches import without_cache
from paretoprune.graph.explain import Problem, SizeError, definition, explain, first_line, user_line
from paretoprune.graph.export import Export, export
from paretoprune.graph.inputs import (
    Marked,
    extra_dims,
    fresh,
    grown,
    in_order,
    leaves_of,
    marked,
    names_of,
    per_sample,
    registered,
    shapes_of,
)
from paretoprune.graph.locate import attempt, by_frames, caller_of, calls_of, children_of, smallest, variants
from paretoprune.graph.misfit import misfit, without_batch
from paretoprune.graph.opaque import Unit, notes_of
from paretoprune.graph.predict import predict
from paretoprune.graph.training import training_notes

MAX_NAMED = 6
"""Submodules that a refusal names."""


@dataclass(frozen=True)
class Captured:
    """`module` runs the graph; its parameters have the user's names. `example` has at least two samples."""

    module: fx.GraphModule
    example: Example
    notes: tuple[str, ...]


def capture(model: nn.Module, example: Example, dynamic: Any = None) -> Captured:
    """Export `model` (already a private copy) with dynamic batches. `dynamic`: input name -> dims, batch aside.

    The captured graph must give what the network gives, at several batch sizes. A submodule that cannot be captured is
    run as it is, if the rest can do without its insides. Raises CaptureError, DataError.
    """
    example = in_order(model, example)
    extra = extra_dims(example, dynamic)
    with without_cache(model) as cached:
        task, done, units = _captured(model, example, extra)
        notes = [*task.notes, *done.notes, *notes_of(model, units), *_fixed(task.example, done.module)]
        notes += training_notes(model, task.example, done.module)
    if cached:
        notes.append("the graph has no key-value cache (use_cache=False); the network's class keeps its own")
    return Captured(done.module, replace(task.example, per_sample=per_sample(done.module)), tuple(notes))


def _captured(
    model: nn.Module, example: Example, extra: dict[int, frozenset[int]]
) -> tuple[_Task, Export, dict[str, Unit]]:
    """On the first larger example with which it succeeds."""
    refusal: CaptureError | None = None
    for larger in grown(example):
        output, error = attempt(model, larger)
        if error is not None:
            refusal = refusal or _cannot_run(model, example, error)
            continue
        _check_output(model, output)
        task = _Task(model, larger, marked(larger, extra), output, extra=extra)
        task.notes = registered(output)
        try:
            return task, *_in_parts(task)
        except CaptureError as failure:
            if not isinstance(failure.__cause__, SizeError):
                raise
            refusal = failure
    raise refusal or CaptureError("the example is empty")


def _cannot_run(model: nn.Module, example: Example, error: Exception) -> CaptureError:
    """A wrong example must fail as the user's own call would, not deep inside the exporter."""
    shapes = ", ".join(f"{n}: {tuple(t.shape)} {t.dtype}" for n, t in example.tensors())
    why = misfit(model, example) or (
        f"{first_line(error)}{user_line(error)}; give an example of the shape and type that forward expects"
    )
    refusal = CaptureError(f"{type(model).__name__} cannot run on the example ({shapes}): {why}")
    refusal.__cause__ = error
    return refusal


def _check_output(model: nn.Module, output: Any) -> None:
    """Something must come out that the graph can be compared by."""
    leaves = pytree.tree_leaves(output)
    if all(leaf is None or isinstance(leaf, (bool, int, float, str)) for leaf in leaves):
        given = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or type(output).__name__
        raise CaptureError(f"forward of {type(model).__name__} returns no tensor ({given}); return what it computes")


def _fixed(example: Example, module: fx.GraphModule) -> list[str]:
    """Sentences on inputs whose first size, or whose value, the graph fixes."""
    notes = []
    for name, value, shape in zip(names_of(example), leaves_of(example), shapes_of(module), strict=True):
        if isinstance(value, torch.Tensor):
            if shape and isinstance(shape[0], int):
                notes.append(f"'{name}' has no batch: its first dimension stays {shape[0]}")
        elif value is not None:
            notes.append(f"the graph holds for {name}={value!r} only")
    return notes


# -- a network in parts ----------------------------------------------------------------------------------------------


@dataclass
class _Task:
    """A module to capture. `part`: it is a submodule, whose dynamic sizes are all known to be so."""

    model: nn.Module
    example: Example
    dims: Marked
    expected: Any
    part: bool = False
    extra: dict[int, frozenset[int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @cached_property
    def sizes(self) -> tuple[list[Example], Any]:
        return variants(self.model, self.example, self.extra)

    def export(self, units: dict[str, Unit]) -> Export:
        return export(self.model, self.example, self.dims, self.expected, units, self.extra, part=self.part)


def _in_parts(task: _Task) -> tuple[Export, dict[str, Unit]]:
    """Capture with ever more submodules that run as they are, until it succeeds. Raises CaptureError."""
    units: dict[str, Unit] = {}
    first: Exception | None = None
    while True:
        try:
            return task.export(units), units
        except Exception as error:  # noqa: BLE001 - the exporter raises anything
            first = first or error
            unit = _next_unit(task, error, units)
            if unit is None:
                raise CaptureError(_refusal(task, first)) from first
        units = {p: u for p, u in units.items() if not p.startswith(f"{unit.path}.")} | {unit.path: unit}


def _next_unit(task: _Task, error: Exception, units: dict[str, Unit]) -> Unit | None:
    """The submodule at fault, or the nearest one around it whose outputs can be foreseen; None if there is none."""
    examples, _ = task.sizes
    if len(examples) == 1:
        return None
    path = by_frames(task.model, error)
    if path is None:
        path = smallest(task.model, "", lambda p: _fails(task, p, units))
    problem = explain(error)
    while path:
        inside = any(path == u or path.startswith(f"{u}.") for u in units)
        calls = None if inside else predict(calls_of(task.model, path, examples))
        if calls is not None:
            return Unit(path, f"{problem.why}{problem.where or definition(task.model.get_submodule(path))}", calls)
        path = caller_of(task.model, path)
    return None


def _fails(task: _Task, path: str, units: dict[str, Unit]) -> bool:
    """Can the submodule not be captured alone, on what it is given in the network?"""
    if path in units:
        return False
    inner = {p.removeprefix(f"{path}."): u for p, u in units.items() if p.startswith(f"{path}.")}
    part = _part(task, path)
    if part is None:
        return False
    try:
        part.export({p: replace(u, path=p) for p, u in inner.items()})
    except Exception:  # noqa: BLE001 - the exporter raises anything; that it raises is what is asked
        return True
    return False


def _part(task: _Task, path: str) -> _Task | None:
    """The first call of a submodule as a task of its own; None where it is not called, or not with plain tensors."""
    examples, _ = task.sizes
    runs = calls_of(task.model, path, examples)
    if not runs[0] or predict(runs) is None:
        return None
    calls = [calls[0] for calls in runs]
    columns = zip(*(pytree.tree_leaves((c.args, c.kwargs)) for c in calls), strict=True)
    dims = tuple(frozenset(_moving(column)) for column in columns)
    module = task.model.get_submodule(path)
    return _Task(module, Example(calls[0].args, calls[0].kwargs), dims, calls[0].output, part=True)


def _moving(values: tuple[Any, ...]) -> list[int]:
    if not isinstance(values[0], torch.Tensor):
        return []
    return [d for d in range(values[0].ndim) if len({v.shape[d] for v in values}) > 1]


def _refusal(task: _Task, error: Exception) -> str:
    problem = explain(error)
    _, raised = task.sizes
    if isinstance(error, SizeError) and raised is not None:
        if missing := without_batch(task.model, task.example):
            return f"{type(task.model).__name__} cannot be captured on the example: {missing}"
        problem = Problem(problem.why, problem.remedy, problem.where or user_line(raised))
    text = problem.of(type(task.model).__name__)
    works = _that_work(task, "") if raised is None else []
    return f"{text}. These parts can be captured by themselves: {', '.join(works)}" if works else text


def _that_work(task: _Task, path: str) -> list[str]:
    """The largest submodules that were captured by themselves, with the shapes that they were given."""
    found: list[str] = []
    for child in children_of(task.model, path):
        part = _part(task, child) if len(found) < MAX_NAMED and list(_parameters(task.model, child)) else None
        if part is None:
            continue
        try:
            part.export({})
        except Exception:  # noqa: BLE001 - as above
            found += _that_work(task, child)
        else:
            shapes = ", ".join(str(tuple(t.shape)) for _, t in part.example.tensors())
            found.append(f"'{child}' on {shapes}")
    return found[:MAX_NAMED]


def _parameters(model: nn.Module, path: str) -> list[nn.Parameter]:
    return list(model.get_submodule(path).parameters())


__all__ = ["Captured", "capture", "fresh"]
