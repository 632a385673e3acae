"""A pruned transformers model as a folder that `from_pretrained` of its own class loads."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paretoprune import graph as graphs
from paretoprune.core.errors import ModelError
from paretoprune.core.graph import Example
from paretoprune.pipeline.blueprint import is_pretrained
from paretoprune.pipeline.fit_config import fitting_config
from paretoprune.pipeline.pruned import Pruned


def save_pretrained(pruned: Pruned, folder: str | Path) -> Path:
    """See `Pruned.save_pretrained`. Nothing is left in `folder` where it fails."""
    model, blueprint = pruned.model, pruned.blueprint
    if not is_pretrained(model) or blueprint is None:
        why = next((n for n in pruned.notes if "rewritten graph" in n), f"the result is a {type(model).__name__}")
        raise ModelError(f"only a model of transformers has from_pretrained ({why}); use paretoprune.save")
    if pruned.plan.ranks:
        raise ModelError(
            f"{type(model.config).__name__} builds whole layers, and '{min(pruned.plan.ranks)}' became two thin "
            "ones; use paretoprune.save"
        )
    config = fitting_config(model)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _part(folder) as part:
        _write(model, config, part)
        _compare(model, part, blueprint.example)
        folder.mkdir(exist_ok=True)
        for file in part.iterdir():
            os.replace(file, folder / file.name)
    return folder


@contextmanager
def _part(folder: Path) -> Iterator[Path]:
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(model: Any, config: Any, folder: Path) -> None:
    before = model.config
    model.config = config
    try:
        with quiet():
            model.save_pretrained(folder)
    finally:
        model.config = before


def _compare(model: Any, folder: Path, example: Example) -> None:
    """Load what was written and compare outputs, with the cache off as in the graph."""
    loaded = _loaded(model, folder)
    wrong, rescaled = _difference(loaded, model, example), False
    if wrong is not None and (rescaled := _rescale_queries(model, loaded)):
        with quiet():
            loaded.save_pretrained(folder)
        loaded = _loaded(model, folder)
        wrong = _difference(loaded, model, example)
    if wrong is not None:
        place = f", first in '{wrong.path}'" if wrong.path else ""
        place += _numbers(model, loaded, _SCALES if rescaled else ())
        raise ModelError(
            f"{type(model.config).__name__} cannot express the result: loaded from it the network gives other values"
            f"{place}; use paretoprune.save, which writes any result"
        )


def _loaded(model: Any, folder: Path) -> Any:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    attention = getattr(model.config, "_attn_implementation", None)
    with quiet():
        loaded = type(model).from_pretrained(folder, local_files_only=True, dtype=dtype, attn_implementation=attention)
    return loaded.to(next(model.parameters()).device).eval()


def _difference(loaded: nn.Module, model: nn.Module, example: Example) -> graphs.Difference | None:
    was = model.training
    model.eval()
    try:
        return graphs.outputs_differ(loaded, model, example)
    finally:
        model.train(was)


_SCALES = ("scaling", "scale", "scale_attn", "attn_scale", "softmax_scale")
_QUERIES = ("q_proj", "query", "q", "query_proj", "q_lin", "wq")


def _rescale_queries(model: nn.Module, loaded: nn.Module) -> bool:
    """A class derives the scale of its attention from the new head size: the queries take up the difference.

    Multiplying a query's weight and bias by a number is the same as scaling its scores. Whether it was done.
    """
    theirs, done = dict(loaded.named_modules()), False
    for path, module in model.named_modules():
        other: Any = theirs.get(path)
        name = next((n for n in _SCALES if type(vars(module).get(n)) is float), None)
        if name is None or other is None or vars(module)[name] == (new := vars(other).get(name)) or not new:
            continue
        query = next((q for n in _QUERIES if isinstance(q := getattr(other, n, None), nn.Linear)), None)
        if query is not None:
            with torch.no_grad():
                for parameter in query.parameters():
                    parameter.mul_(vars(module)[name] / new)
            done = True
    return done


def _numbers(model: nn.Module, loaded: nn.Module, settled: Collection[str]) -> str:
    """The first plain number or buffer in which the two networks differ; those that are `settled` do no harm."""
    theirs = dict(loaded.named_modules())
    for path, module in model.named_modules():
        other = theirs.get(path)
        for name, value in vars(module).items():
            found = None if other is None else getattr(other, name, None)
            if name not in settled and type(value) is type(found) is float and value != found:
                return f": '{path}.{name}' is {value:.6g}, and the config gives {found:.6g}"
    buffers = dict(loaded.named_buffers())
    for name, buffer in model.named_buffers():
        if name in buffers and not torch.equal(buffer, buffers[name].to(buffer.dtype)):
            return f": buffer '{name}', which the config gives anew, is another one"
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """transformers reports on weights as it loads them; what is wrong is said by the comparison."""
    logger = logging.getLogger("transformers")
    was, bars = logger.level, _bars()
    logger.setLevel(logging.ERROR)
    if bars is not None:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(was)
        if bars is not None:
            bars.enable_progress_bar()


def _bars() -> Any:
    """Its progress bars, if they are on."""
    found = sys.modules.get("transformers.utils.logging")
    return found if found is not None and found.is_progress_bar_enabled() else None
