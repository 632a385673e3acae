"""From a recipe to what `pp.search` takes: the network, an example, the data and the task.

This is the only place where something that a recipe names is imported and called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

from paretoprune.core.data import Data
from paretoprune.core.errors import FileError, PruneError, UsageError
from paretoprune.core.front import Front
from paretoprune.core.plugin import load_reference
from paretoprune.core.progress import Progress
from paretoprune.core.protocols import Task
from paretoprune.pipeline.files import load_checkpoint
from paretoprune.pipeline.recipe import ModelSection, Recipe, TaskSection
from paretoprune.pipeline.search import search

SETS = ("train", "validation", "test", "calibration")
_CODE = (type, FunctionType, BuiltinFunctionType)
_TOOLS = ("torch", "numpy", "pip", "setuptools")
"""Installed everywhere, with functions that load or run code. `torch.nn` is allowed."""


@dataclass(frozen=True)
class Problem:
    """`task` is None where the recipe leaves it to the search."""

    model: nn.Module
    example: Any
    data: Data
    task: str | Task | None


def run(recipe: Recipe, progress: Progress) -> Front:
    """Search as the recipe says, in its folder. Raises what `pp.search` raises."""
    problem = problem_of(recipe)
    task = {} if problem.task is None else {"task": problem.task}
    options: dict[str, Any] = {**recipe.options, **task}
    if "meter" in options:
        options["meter"] = refer("target.meter", options["meter"])
    return search(problem.model, problem.example, problem.data, out=recipe.folder, progress=progress, **options)


def problem_of(recipe: Recipe) -> Problem:
    """Import and call what the recipe names. Raises UsageError or FileError that names the key."""
    sections = recipe.sections
    make_importable(recipe.file.parent)
    for key, reference in _parts(recipe):
        _refuse_foreign(key, reference, reference.partition(":")[0])
    model, example = network_of(recipe)
    given = called("data.build", sections.data.build, recipe.arguments("data.args", sections.data.args))
    return Problem(model, example, data_from(given, sections.data.build), task_from(sections.task))


def _parts(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The parts of the search that are given as "pkg.mod:attribute"; the search itself imports them."""
    sections = recipe.sections
    named = {
        "task.name": sections.task.name,
        "search.searcher": sections.search.searcher,
        "search.criterion": sections.search.criterion,
        "target.name": sections.target.name,
        "target.meter": sections.target.meter,
    }
    for key, name in named.items():
        if name is not None and ":" in name:
            yield key, name


def network_of(recipe: Recipe) -> tuple[nn.Module, Any]:
    """The network, with its checkpoint loaded, and an example input."""
    make_importable(recipe.file.parent)
    section = recipe.sections.model
    model = built(section.build, recipe.arguments("model.args", section.args))
    if section.checkpoint is not None:
        _load(model, recipe, section.checkpoint)
    return model, example_from(section)


def make_importable(folder: Path) -> None:
    """Modules beside the recipe (or in the current folder) can be named.

    They come before installed packages and after Python's own library: a `profile.py` in the user's folder must not
    break the libraries that import Python's.
    """
    if str(folder) not in sys.path:
        installed = (i for i, path in enumerate(sys.path) if path.endswith(("site-packages", "dist-packages")))
        sys.path.insert(next(installed, len(sys.path)), str(folder))


def built(reference: str, args: Mapping[str, Any], key: str = "model.build") -> nn.Module:
    """The network that `reference` is, or gives when called."""
    found = refer(key, reference)
    model = found if isinstance(found, nn.Module) else called(key, reference, args)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{key} = {reference!r} gave a {type(model).__name__}; expected a torch.nn.Module")
    return model


def example_from(section: ModelSection) -> Any:
    if section.example is not None:
        found = refer("model.example", section.example)
        return called("model.example", section.example, {}) if callable(found) else found
    return example_of_shape(section.shape, section.dtype)


def example_of_shape(shape: list[int], dtype: str) -> torch.Tensor:
    """Two samples of this shape: numbers for floating point, zeros (a valid index everywhere) for integers."""
    if not all(n >= 1 for n in shape):
        raise UsageError(f"shape = {shape}: give the sizes of one sample without the batch, each at least 1")
    kind: torch.dtype = getattr(torch, dtype)
    if not kind.is_floating_point:
        return torch.zeros((2, *shape), dtype=kind)
    return torch.randn((2, *shape), generator=torch.Generator().manual_seed(0)).to(kind)


def data_from(given: Any, reference: str) -> Data:
    """A Data as it is, or a tuple or dict of three or four iterables of batches."""
    if isinstance(given, Data):
        return given
    if isinstance(given, Mapping) and {*SETS[:3]} <= given.keys() <= {*SETS}:
        return Data(**given)
    if isinstance(given, tuple) and len(given) in (3, 4):
        return Data(*given)
    what = f"a dict with {sorted(map(str, given))}" if isinstance(given, Mapping) else f"a {type(given).__name__}"
    raise UsageError(
        f"data.build = {reference!r} gave {what}; expected paretoprune.Data, or a tuple or dict of train, validation, "
        "test and, if wanted, calibration"
    )


def task_from(section: TaskSection) -> str | Task | None:
    if section.loss is None:
        return section.name
    loss, correct = _function("task.loss", section.loss), _function("task.correct", section.correct)
    return Task(f"{section.loss} {section.correct}", loss, correct)


def _function(key: str, reference: str) -> Callable[[Any, Any], torch.Tensor]:
    """A function of (output, labels) whose own errors name the key."""
    found = refer(key, reference)
    if not callable(found):
        raise UsageError(f"{key} = {reference!r} is a {type(found).__name__}; expected a function of (output, labels)")

    def call(output: Any, labels: Any) -> torch.Tensor:
        with _user_code(key, reference):
            result: torch.Tensor = found(output, labels)
            return result

    return call


def refer(key: str, reference: str) -> Any:
    """What "pkg.mod:attribute" points at."""
    module, sign, attribute = reference.partition(":")
    if not (sign and module and attribute):
        raise UsageError(f"{key} = {reference!r}: expected 'pkg.mod:attribute', for instance 'my_net:build'")
    _refuse_foreign(key, reference, module)
    with _user_code(key, reference):
        found = load_reference(key, reference)
    if isinstance(found, _CODE):
        _refuse_foreign(key, reference, found.__module__ or "")
    return found


def _refuse_foreign(key: str, reference: str, module: str) -> None:
    """A recipe alone must not be able to run a program: "os:system" with arguments, or "torch:load", would."""
    root = module.partition(".")[0]
    if (root in sys.stdlib_module_names or root in _TOOLS) and not f"{module}.".startswith("torch.nn."):
        raise UsageError(
            f"{key} = {reference!r} leads into {module!r}, which makes no networks, data or tasks; "
            "name a function of your own (in a module that is not called like one of Python's)"
        )


def called(key: str, reference: str, args: Mapping[str, Any]) -> Any:
    found = refer(key, reference)
    if not callable(found):
        raise UsageError(f"{key} = {reference!r} is a {type(found).__name__}; expected a function")
    with _user_code(key, reference):
        return found(**args)


@contextmanager
def _user_code(key: str, reference: str) -> Iterator[None]:
    """The user's own code may raise anything: say which key led there."""
    try:
        yield
    except PruneError:
        raise
    except Exception as error:
        what = " ".join(str(error).split()) or "no message"
        raise UsageError(f"{key} = {reference!r} failed with {type(error).__name__}: {what}") from error


def _load(model: nn.Module, recipe: Recipe, text: str) -> None:
    file = recipe.path("model.checkpoint", text)
    if not file.is_file():
        # The text as written: what a variable holds is not for messages.
        raise FileError(f"model.checkpoint = {text!r}: there is no such file; paths are relative to the recipe")
    load_checkpoint(model, file)
