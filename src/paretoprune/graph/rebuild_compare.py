"""Does the user's class compute what the rewritten graph computes? Outputs and gradients, and where it goes wrong."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from paretoprune.graph.reference import randomised

GRADIENT_BYTES = 16 << 20
"""Gradients that are compared at a time; a sixteenth of a large network's."""
NOISE = 1e-6
"""Times the largest gradient beside it: what rounding leaves of one that is zero, as a bias before a normalisation."""
_PIECE = 1 << 16
"""Elements that are drawn or compared at a time."""
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
_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference over the output's scale, for the coarser types."""


@dataclass(frozen=True)
class Difference:
    """Why the class is wrong, and the module where that shows first (empty if unknown). `runs`: it gave outputs."""

    why: str
    path: str = ""
    runs: bool = True


def difference(
    clone: nn.Module, program: fx.GraphModule, example: Example, made: Callable[[str], torch.Tensor] | None = None
) -> Difference | None:
    """None if outputs and gradients agree at two batch sizes, with the network's own weights and with random ones.

    `made` gives a parameter of the program once more, which then need not be kept while it is random.

    Random weights show what own ones may hide: with small weights the scale of an attention hardly matters. The two
    modules share memory, so they see the same ones.
    """
    first, second = (randomised(example, seed, batch) for seed, batch in ((2, 2), (3, 3)))
    with without_cache(clone):
        for inputs in (first, second):
            if found := _compare_call(clone, program, inputs):
                return found
        forget(clone)
        with _random_weights(program, made), torch.no_grad():
            return _compare_outputs(clone, program, first)


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
            if not _all_close(theirs, _leaves(call(other, fresh(inputs)))):
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


def _compare_call(clone: nn.Module, program: fx.GraphModule, inputs: Example) -> Difference | None:
    theirs, failed = _run(clone, inputs)
    if failed and _run(program, inputs)[1]:  # a network that cannot run with gradients is compared without
        with torch.no_grad():
            return _compare_outputs(clone, program, inputs)
    if failed:
        return failed
    ours = _leaves(call(program, fresh(inputs)))
    if not _all_close(theirs, ours):
        return _wrong_values(clone, program, inputs)
    return _compare_gradients(clone, program, theirs, ours)


def _compare_outputs(clone: nn.Module, program: fx.GraphModule, inputs: Example) -> Difference | None:
    theirs, failed = _run(clone, inputs)
    if failed:
        return failed
    ours = _leaves(call(program, fresh(inputs)))
    return None if _all_close(theirs, ours) else _wrong_values(clone, program, inputs)


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
def _random_weights(program: nn.Module, made: Callable[[str], torch.Tensor] | None) -> Iterator[None]:
    """Floating parameters hold random values: vectors around one, matrices with columns of length one."""
    generator = torch.Generator().manual_seed(0)
    parameters = {n: p for n, p in program.named_parameters() if p.is_floating_point() and p.numel()}
    changed = {n: p.detach().clone() for n, p in parameters.items() if made is None or not torch.equal(p, made(n))}
    try:
        with torch.no_grad():
            for p in parameters.values():
                rows = max(1, _PIECE // max(p[0].numel(), 1)) if p.ndim else 1
                for piece in p.split(rows) if p.ndim else (p,):  # type: ignore[no-untyped-call]
                    piece.copy_(torch.randn(piece.shape, generator=generator))
                p.abs_().add_(0.5) if p.ndim < 2 else p.div_(sqrt(max(p[0].numel(), 1)))
        yield
    finally:
        with torch.no_grad():
            for n, p in parameters.items():
                p.copy_(changed[n] if made is None or n in changed else made(n))


# -- gradients ---------------------------------------------------------------------------------------------------------


def _compare_gradients(
    clone: nn.Module, program: nn.Module, theirs: list[torch.Tensor], ours: list[torch.Tensor]
) -> Difference | None:
    """Some parameters at a time, for gradients of a whole network are as large as it is."""
    totals = [_trained(outputs) for outputs in (theirs, ours)]
    mine, named = (dict(m.named_parameters(remove_duplicate=False)) for m in (clone, program))
    names = [n for n, p in program.named_parameters() if p.requires_grad and n in mine]
    if (totals[0] is None) != (totals[1] is None):
        return Difference("its outputs can be trained and the rewritten graph's cannot, or the other way round")
    for chunk in _chunks(names, named):
        grads = [
            _gradients(total, [of[n] for n in chunk])
            for total, of in zip(totals, (mine, named), strict=True)
            if total is not None
        ]
        if not grads:
            return None
        noise = NOISE * max((_scale(g) for g in grads[-1] if g is not None), default=0.0)
        for name, a, b in zip(chunk, *grads, strict=True):
            if (a is None) != (b is None) or (a is not None and b is not None and not _close(a, b, noise)):
                return Difference(
                    f"the gradient of '{name}' differs from the rewritten graph's", name.rpartition(".")[0]
                )
        del grads, a, b  # before the next ones are made
    return None


def _gradients(total: torch.Tensor, of: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """Gradients; of a large matrix only its products with two random vectors, one for each of its sides."""
    found = torch.autograd.grad(total, of, allow_unused=True, retain_graph=True)
    return [_products(g) if g is not None and g.nbytes > GRADIENT_BYTES and g.ndim > 1 else g for g in found]


def _products(gradient: torch.Tensor) -> torch.Tensor:
    matrix = gradient.flatten(1)
    generator = torch.Generator().manual_seed(7)
    left, right = (torch.randn(n, generator=generator).to(matrix) for n in matrix.shape)
    return torch.cat([left @ matrix / sqrt(len(left)), matrix @ right / sqrt(len(right))])


def _trained(outputs: list[torch.Tensor]) -> torch.Tensor | None:
    """A loss whose gradient is large everywhere; the squares of a normalised output, say, have none."""
    generator = torch.Generator().manual_seed(5)
    totals = []
    for output in (o for o in outputs if o.requires_grad):
        weight = torch.randn(output.shape, generator=generator).to(output.device)
        totals.append((output.abs() if output.is_complex() else output).mul(weight).double().sum())
    return torch.stack(totals).sum() if totals else None


def _chunks(names: list[str], tensors: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Names by turns, each chunk below GRADIENT_BYTES (or a sixteenth of all) or a single name."""
    sizes = {n: tensors[n].numel() * tensors[n].element_size() for n in names}
    most = max(GRADIENT_BYTES, sum(sizes.values()) // 16)
    chunks: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        if size > left:
            chunks.append([])
            left = most
        chunks[-1].append(name)
        left -= size
    return chunks


def _leaves(output: Any) -> list[torch.Tensor]:
    return [v for v in pytree.tree_leaves(output) if isinstance(v, torch.Tensor)]


def _all_close(theirs: Sequence[torch.Tensor], ours: Sequence[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(_close(a, b) for a, b in zip(theirs, ours, strict=True))


def _close(a: torch.Tensor, b: torch.Tensor, noise: float = 0.0) -> bool:
    """`noise`: differences up to here count for nothing."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point() and not a.is_complex():
        return torch.equal(a, b.to(a.device))
    tolerance = _TOLERANCE.get(b.dtype, 1e-3)
    slack = _TOLERANCE.get(b.dtype, 1e-4) * _scale(b.detach()) + noise + 1e-12
    pairs = zip(_blocks(a.detach()), _blocks(b.detach().to(a.device)), strict=True)
    return all(torch.allclose(x, y, rtol=tolerance, atol=slack, equal_nan=True) for x, y in pairs)


def _scale(value: torch.Tensor) -> float:
    """The largest finite magnitude."""
    return max((float(v.abs().nan_to_num(0, 0, 0).max()) for v in _blocks(value) if v.numel()), default=0.0)


def _blocks(value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A piece at a time, for gradients are large and a comparison makes several copies."""
    return tuple(value.reshape(-1).split(_PIECE))  # type: ignore[no-untyped-call]
