"""Does the user's class compute what the rewritten graph computes? Outputs and gradients, and where it goes wrong."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import sqrt
from types import TracebackType
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from paretoprune.core.graph import Example, placeholders
from paretoprune.graph.caches import without_cache
from paretoprune.graph.inference import paths_of
from paretoprune.graph.inputs import fresh
from paretoprune.graph.model import forget
from paretoprune.graph.program import call
from paretoprune.graph.rebuild_close import PIECE, all_close
from paretoprune.graph.rebuild_gradients import Chunk, Gradients, apart, chunks_of, gradients, loss
from paretoprune.graph.reference import randomised
from paretoprune.graph.surgery import Pieces

_FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    AssertionError,
    KeyError,
    ArithmeticError,
    NotImplementedError,
)
"""What a forward raises at sizes that it was not made for."""
_UNTRAINED = "its outputs can be trained and the rewritten graph's cannot, or the other way round"


@dataclass(frozen=True)
class Difference:
    """Why the class is wrong, and the module where that shows first (empty if unknown). `runs`: it gave outputs."""

    why: str
    path: str = ""
    runs: bool = True


def difference(
    clone: nn.Module, program: fx.GraphModule, example: Example, made: Callable[[str], Pieces] | None = None
) -> Difference | None:
    """None if outputs and gradients agree at two batch sizes, with the network's own weights and with random ones.

    `made` gives a parameter of the program once more, which then need not be kept while it is random.

    Random weights show what own ones may hide: with small weights the scale of an attention hardly matters. The two
    modules share memory, so they see the same ones.

    A heap that has grown does not shrink again. So large gradients, which are no part of it, come first, while it is
    small, and the larger batch comes first, in whose room the other fits.
    """
    three, two = (randomised(example, batch, batch) for batch in (3, 2))
    large, rest = chunks_of(clone, program)
    with without_cache(clone):
        for chunks in (large, rest) if large else (rest,):
            for inputs in (three, two):
                if found := _compare_call(clone, program, inputs, chunks, in_turn=chunks is large):
                    return found
        forget(clone)
        with _random_weights(program, made), torch.no_grad():
            return _compare_outputs(clone, program, two)


def figures(network: nn.Module, example: Example) -> list[tuple[float, ...]]:
    """Size, sum, norm and largest value of every floating output."""
    was = network.training
    network.eval()
    try:
        with without_cache(network), torch.no_grad():
            outputs = _leaves(call(network, fresh(example)))
    finally:
        network.train(was)
    return [sketch for output in outputs if (sketch := _sketch(output))]


def outputs_differ(one: nn.Module, other: nn.Module, example: Example) -> Difference | None:
    """None if two networks of one class give the same outputs at two batch sizes; where it shows first, if not."""
    with without_cache(one), without_cache(other), torch.no_grad():
        for inputs in (randomised(example, seed, batch) for seed, batch in ((2, 2), (3, 3))):
            theirs, failed = _run(one, inputs)
            if failed:
                return failed
            if not all_close(theirs, _leaves(call(other, fresh(inputs)))):
                return Difference("they give other values", _first_apart(one, other, inputs))
    return None


def _first_apart(one: nn.Module, other: nn.Module, inputs: Example) -> str:
    """The innermost module whose output first differs."""
    first, second = (_traced(m, inputs) for m in (one, other))
    pairs = zip(first, second, strict=False)
    return next((p for (p, a), (q, b) in pairs if p == q and a and b and (len(a) != len(b) or not _near(a, b))), "")


def _traced(module: nn.Module, inputs: Example) -> list[tuple[str, tuple[float, ...]]]:
    """(path, sketch of the output) of every call of a module, in the order in which they end."""
    found: list[tuple[str, tuple[float, ...]]] = []

    def seen(path: str) -> Any:
        return lambda module, args, output: found.append((path, _sketch(output)))

    hooks = [m.register_forward_hook(seen(p)) for p, m in module.named_modules() if p]
    try:
        call(module, fresh(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _compare_call(
    clone: nn.Module, program: fx.GraphModule, inputs: Example, chunks: Sequence[Chunk], *, in_turn: bool
) -> Difference | None:
    """Outputs, and the gradients of `chunks`. `in_turn`: what autograd keeps of one network goes before the other's."""
    theirs, failed = _run(clone, inputs)
    if failed and _run(program, inputs)[1]:  # a network that cannot run with gradients is compared without
        with torch.no_grad():
            return _compare_outputs(clone, program, inputs)
    if failed:
        return failed
    theirs = [t.detach() for t in theirs] if in_turn else theirs
    with torch.no_grad() if in_turn else nullcontext():
        ours = _leaves(call(program, fresh(inputs)))
    if not all_close(theirs, ours):
        return _wrong_values(clone, program, inputs)
    if not in_turn:
        return _compare_gradients(clone, program, theirs, ours, chunks)
    del theirs, ours
    return _compare_in_turn(clone, program, inputs, chunks)


def _compare_gradients(
    clone: nn.Module,
    program: nn.Module,
    theirs: Sequence[torch.Tensor],
    ours: Sequence[torch.Tensor],
    chunks: Iterable[Chunk],
) -> Difference | None:
    mine, total = loss(theirs), loss(ours)
    if mine is None or total is None:
        return None if mine is total else Difference(_UNTRAINED)
    wrong = (apart(c, gradients(mine, clone, c), gradients(total, program, c)) for c in chunks)
    return _wrong_gradient(wrong)


def _compare_in_turn(
    clone: nn.Module, program: nn.Module, inputs: Example, chunks: Sequence[Chunk]
) -> Difference | None:
    theirs, ours = (_gradients_alone(module, inputs, chunks) for module in (clone, program))
    if theirs is None or ours is None:
        return None if theirs is ours else Difference(_UNTRAINED)
    return _wrong_gradient(map(apart, chunks, theirs, ours))


def _gradients_alone(module: nn.Module, inputs: Example, chunks: Iterable[Chunk]) -> list[Gradients] | None:
    total = loss(_leaves(call(module, fresh(inputs))))
    return None if total is None else [gradients(total, module, chunk) for chunk in chunks]


def _wrong_gradient(names: Iterable[str]) -> Difference | None:
    name = next(filter(None, names), "")
    why = f"the gradient of '{name}' differs from the rewritten graph's"
    return Difference(why, name.rpartition(".")[0]) if name else None


def _compare_outputs(clone: nn.Module, program: fx.GraphModule, inputs: Example) -> Difference | None:
    theirs, failed = _run(clone, inputs)
    if failed:
        return failed
    ours = _leaves(call(program, fresh(inputs)))
    return None if all_close(theirs, ours) else _wrong_values(clone, program, inputs)


def _run(clone: nn.Module, inputs: Example) -> tuple[list[torch.Tensor], Difference | None]:
    try:
        return _leaves(call(clone, fresh(inputs))), None
    except _FAILURES as error:
        return [], _failure(clone, error)


def _failure(clone: nn.Module, error: BaseException) -> Difference:
    """Names the innermost module of the network in the traceback, and its line."""
    names = {id(m): n for n, m in clone.named_modules()}
    path, line = "", ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        first = frame.f_code.co_varnames[:1]
        owner = id(frame.f_locals.get(first[0])) if first else 0
        if owner in names and not frame.f_code.co_filename.replace("\\", "/").count("/torch/"):
            path = names[owner]
            line = linecache.getline(frame.f_code.co_filename, trace.tb_lineno).strip()
        trace = trace.tb_next
    text = " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())[:160]
    at = f" in '{path or type(clone).__name__}'" + (f" at `{line[:100]}`" if line else "")
    return Difference(f"its forward fails at the new sizes{at} ({text})", path, runs=False)


def _wrong_values(clone: nn.Module, program: fx.GraphModule, inputs: Example) -> Difference:
    path = _first_wrong(clone, program, inputs)
    at = f", first in '{path}' ({type(clone.get_submodule(path)).__name__})" if path else ""
    return Difference(f"its forward gives other values than the rewritten graph at the new sizes{at}", path)


def _first_wrong(clone: nn.Module, program: fx.GraphModule, inputs: Example) -> str:
    """The innermost module whose output first differs from what the graph has in its place."""
    last = {path: node for node in program.graph.nodes if node.op == "call_function" for path in paths_of(node)}
    found: list[tuple[str, tuple[float, ...]]] = []

    def seen(path: str) -> Any:
        return lambda module, args, output: found.append((path, _sketch(output)))

    modules = [(p, m) for p, m in clone.named_modules() if p and p in last]
    hooks = [m.register_forward_hook(seen(p)) for p, m in modules]
    try:
        with torch.no_grad():
            call(clone, fresh(inputs))
            wanted = _Sketches(program, {n: p for p, n in last.items()}).take(inputs)
    except _FAILURES:
        return ""
    finally:
        for hook in hooks:
            hook.remove()
    calls = [p for p, _ in found]
    for path, sketch in found:
        node = last[path].name
        if calls.count(path) == 1 and sketch and wanted.get(node) and not _near(sketch, wanted[node]):
            return path
    return ""


class _Sketches(fx.Interpreter):
    """Runs a graph and keeps a few numbers of the values at some nodes."""

    def __init__(self, program: fx.GraphModule, watched: Mapping[fx.Node, str]):
        super().__init__(program)
        self._watched, self._found = {n.name for n in watched}, dict[str, tuple[float, ...]]()

    def take(self, inputs: Example) -> dict[str, tuple[float, ...]]:
        self.run(*placeholders(self.module, fresh(inputs)))  # type: ignore[arg-type]
        return self._found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._watched:
            self._found[n.name] = _sketch(value)
        return value


def _sketch(value: Any) -> tuple[float, ...]:
    """Nothing for what is no single tensor: which of a module's nodes gave which output is not known."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
        return ()
    flat = value.detach().double().reshape(-1)
    return float(value.numel()), float(flat.sum()), float(flat.norm()), float(flat.abs().max())


def _near(a: Sequence[float], b: Sequence[float]) -> bool:
    scale = b[2] + 1e-12
    return all(abs(x - y) <= 1e-3 * scale for x, y in zip(a, b, strict=True))


@contextmanager
def _random_weights(program: nn.Module, made: Callable[[str], Pieces] | None) -> Iterator[None]:
    """Floating parameters hold random values: vectors around one, matrices with columns of length one."""
    generator = torch.Generator().manual_seed(0)
    parameters = {n: p for n, p in program.named_parameters() if p.is_floating_point() and p.numel()}
    changed = {n: p.detach().clone() for n, p in parameters.items() if made is None or not _consists(p, made(n))}
    try:
        with torch.no_grad():
            for p in parameters.values():
                rows = max(1, PIECE // max(p[0].numel(), 1)) if p.ndim else 1
                for piece in p.split(rows) if p.ndim else (p,):  # type: ignore[no-untyped-call]
                    piece.copy_(torch.randn(piece.shape, generator=generator))
                p.abs_().add_(0.5) if p.ndim < 2 else p.div_(sqrt(max(p[0].numel(), 1)))
        yield
    finally:
        with torch.no_grad():
            for n, p in parameters.items():
                for place, piece in [(..., changed[n])] if made is None or n in changed else made(n):
                    p[place].copy_(piece)


def _consists(whole: torch.Tensor, pieces: Pieces) -> bool:
    return all(torch.equal(whole[place], piece) for place, piece in pieces)


def _leaves(output: Any) -> list[torch.Tensor]:
    return [v for v in pytree.tree_leaves(output) if isinstance(v, torch.Tensor)]
