"""Which submodule is it that cannot be captured, and how does it behave at several sizes?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from paretoprune.core.graph import Example
from paretoprune.graph.explain import OWN
from paretoprune.graph.inputs import batches_of, fresh, leaves_of, mapped, resized
from paretoprune.graph.opaque import replaced
from paretoprune.graph.predict import Call
from paretoprune.graph.shared import unwritten

_LAYERS = str(Path(nn.__file__).parent / "modules")
"""Code of torch's that counts as the network's: its layers."""
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def by_frames(model: nn.Module, error: BaseException) -> str | None:
    """The module whose code raised: the innermost frame that belongs to a submodule. "" is the network itself."""
    paths = {id(m): path for path, m in model.named_modules()}
    found = None
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith(OWN) or code.co_filename.startswith(_LAYERS):
            first = trace.tb_frame.f_locals.get(code.co_varnames[0]) if code.co_varnames else None
            found = paths.get(id(first), found) if isinstance(first, nn.Module) else found
        trace = trace.tb_next
    return found


def caller_of(model: nn.Module, path: str) -> str:
    """The nearest module above that is called itself."""
    path = path.rpartition(".")[0]
    while path and isinstance(model.get_submodule(path), _CONTAINERS):
        path = path.rpartition(".")[0]
    return path


def children_of(model: nn.Module, path: str) -> list[str]:
    """The nearest modules below that are called themselves."""
    found = []
    for name, child in model.get_submodule(path).named_children():
        below = f"{path}.{name}".lstrip(".")
        found += children_of(model, below) if isinstance(child, _CONTAINERS) else [below]
    return found


def smallest(model: nn.Module, path: str, fails: Callable[[str], bool]) -> str:
    """The lowest module below `path` that fails where none of its children does; `path` itself if that is the one."""
    for child in children_of(model, path):
        if fails(child):
            return smallest(model, child, fails)
    return path


# -- runs of the network ---------------------------------------------------------------------------------------------


def attempt(model: nn.Module, example: Example) -> tuple[Any, Exception | None]:
    """(what the network gives, None) or (None, what it raised)."""
    given = fresh(example)
    try:
        with torch.no_grad(), unwritten(model.parameters()):
            return model(*given.args, **given.kwargs), None
    except Exception as error:  # noqa: BLE001 - whatever forward raises is the user's
        return None, error


_TIMES = (1, -1, -8)
"""Sizes that depend on the data may agree by chance: small values hide behind a layer's bias."""


def variants(model: nn.Module, example: Example, extra: Mapping[int, frozenset[int]]) -> tuple[list[Example], Any]:
    """The example, then examples at other sizes and with other values that the network takes; and what it raised.

    Without another batch the list holds the example alone.
    """
    found, raised = [example], None
    for other in _batches(example):
        _, error = attempt(model, other)
        if error is None:
            found.append(other)
            break
        raised = raised or error
    else:
        return found, raised
    for other in (*_lengths(example, extra), *(shuffled(example, times=t) for t in _TIMES)):
        if attempt(model, other)[1] is None:
            found.append(other)
    return found, None


def _batches(example: Example) -> Iterator[Example]:
    """One sample more, then twice the samples; then the same without one of the inputs, which may have no batch."""
    leaves, first = leaves_of(example), batches_of(example)
    first = [i for i in first if leaves[i].shape[0] > 1] or first
    sizes = {i: leaves[i].shape[0] for i in first}
    for left in (None, *(first if len(first) > 1 else ())):
        yield resized(example, {i: {0: n + 1} for i, n in sizes.items() if i != left})
        yield resized(example, {i: {0: n * 2} for i, n in sizes.items() if i != left})


def _lengths(example: Example, extra: Mapping[int, frozenset[int]]) -> Iterator[Example]:
    leaves = leaves_of(example)
    longer = {i: {d: leaves[i].shape[d] + 1 for d in dims if d} for i, dims in extra.items()}
    if any(longer.values()):
        yield resized(example, longer)
        yield from (resized(example, {i: {d: n}}) for i, dims in longer.items() for d, n in dims.items())


def shuffled(example: Example, *, times: float = 1) -> Example:
    """The same sizes with the samples' values mixed up and multiplied: what depends on the data may change.

    A list of whole numbers stays: it may hold lengths or offsets, whose order means something.
    """
    generator = torch.Generator().manual_seed(0)

    def mix(value: torch.Tensor) -> torch.Tensor:
        floating = value.is_floating_point() or value.is_complex()
        if not floating and value.ndim < 2:
            return value
        order = torch.randperm(value.numel(), generator=generator).to(value.device)
        mixed = value.detach().reshape(-1)[order].reshape(value.shape)
        return mixed * times if times != 1 and floating else mixed

    return mapped(example, mix)


def calls_of(model: nn.Module, path: str, examples: Sequence[Example]) -> list[list[Call]]:
    """What the submodule is given and gives, per example and call. Nothing may be changed in what is returned."""
    result: list[list[Call]] = []
    for example in examples:
        with _listening(model, path) as calls:
            attempt(model, example)
        result.append(list(calls))
    return result


@contextmanager
def _listening(model: nn.Module, path: str) -> Iterator[list[Call]]:
    """TorchScript takes no hooks: a module that calls it stands in its place."""
    module = model.get_submodule(path)
    calls: list[Call] = []
    if isinstance(module, torch.jit.ScriptModule):
        with replaced(model, module, _Recorder(module, calls)):
            yield calls
        return
    given: list[tuple[Any, Any]] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        given.append(_copies((args, kwargs)))

    def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append(Call(*given.pop(), _copies(output)))

    handles: list[Any] = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(nn.Module):
    def __init__(self, module: nn.Module, calls: list[Call]) -> None:
        super().__init__()
        self._run, self._calls = module.__call__, calls

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given, named = _copies((args, kwargs))
        output = self._run(*args, **kwargs)
        self._calls.append(Call(given, named, _copies(output)))
        return output


def _copies(tree: Any) -> Any:
    return pytree.tree_map(lambda v: v.detach().clone() if isinstance(v, torch.Tensor) else v, tree)
