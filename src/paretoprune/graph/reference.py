"""The dead-channel reference: the original network with every removed entry set to zero.

Normalisations take their statistics over kept positions. A pruned network that differs from it is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any, Literal

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from paretoprune.core.errors import SurgeryError
from paretoprune.core.graph import Example
from paretoprune.core.plan import Plan
from paretoprune.graph.algebra import Expr, atoms_of, factors_of
from paretoprune.graph.op import bind
from paretoprune.graph.positions import kept_indices
from paretoprune.graph.program import placeholders
from paretoprune.graph.surgery import cut
from paretoprune.graph.traced import TracedGraph, tensors_of

TOLERANCE = 1e-8
"""Largest allowed difference over the outputs' scale, in double precision."""
COARSE_TOLERANCE = 1e-4
"""The same where the graph fixes single precision."""


def randomised(example: Example, seed: int, batch: int) -> Example:
    """Inputs of the example's kinds with other values: normal around its mean, integers within its range."""
    generator = torch.Generator().manual_seed(seed)

    def draw(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        shape = (batch, *value.shape[1:])
        if value.is_floating_point():
            spread = value.double().std(unbiased=False) if value.numel() > 1 else torch.tensor(1.0)
            scale = float(spread) or 1.0
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            return (noise * scale + float(value.double().mean())).to(value.dtype).to(value.device)
        if value.dtype == torch.bool:
            return (torch.rand(shape, generator=generator) < 0.5).to(value.device)
        low, high = int(value.min()), int(value.max())
        return torch.randint(low, high + 1, shape, generator=generator).to(value.dtype).to(value.device)

    args, kwargs = pytree.tree_map(draw, (example.args, dict(example.kwargs)))
    return Example(args, kwargs)


def check(graph: TracedGraph, plan: Plan) -> None:
    """Cut a double-precision copy and compare it with the reference on randomised inputs.

    Once with the network's own weights and once with random ones, which reach what own zeros would hide. Raises
    SurgeryError naming the axes if they differ, or if the reference's output varies with its input neither way, for
    then the comparison would prove nothing.
    """
    varies = False
    for weights in ("own", "random", "positive"):
        if weights == "positive" and varies:
            return
        verdict = _compare(graph, plan, weights)
        varies = varies or verdict.varies
        if not verdict.agrees:
            raise SurgeryError(
                f"the pruned network differs from the dead-channel reference by {verdict.error:.3g} of the output's "
                f"scale (allowed {verdict.tolerance:g}) after pruning {_culprits(graph, plan)}; "
                "leave these axes out with ignore= and report the network"
            )
    if not varies:
        raise SurgeryError(
            "the self-check proves nothing: the network's output does not vary with its input, "
            "neither with its own weights nor with random ones; give an example on which it does"
        )


def _culprits(graph: TracedGraph, plan: Plan) -> str:
    """The axes that are wrong when they are pruned alone; all of them where none is."""
    alone = [
        name
        for name, kept in plan.kept.items()
        if not all(_compare(graph, Plan({name: kept}), weights).agrees for weights in ("own", "random"))
    ]
    return ", ".join(f"'{name}'" for name in alone or plan.kept)


Weights = Literal["own", "random", "positive"]
"""`positive` weights keep every rectifier of a narrow network alive."""


@dataclass(frozen=True)
class Verdict:
    """`error` is relative to the output's scale; `varies`: the reference tells two inputs apart."""

    error: float
    tolerance: float
    varies: bool
    judged: bool = True
    """Random weights may drive a network out of range (the root of a negative number), which proves nothing."""

    @property
    def agrees(self) -> bool:
        return not self.judged or self.error <= self.tolerance


def _compare(graph: TracedGraph, plan: Plan, weights: Weights) -> Verdict:
    """In double precision; in the network's own where its graph insists on that."""
    try:
        return _compare_in(graph, plan, torch.float64, weights)
    except RuntimeError as error:
        if "dtype" not in str(error) and "type" not in str(error):
            raise
        return _compare_in(graph, plan, None, weights)


def _compare_in(graph: TracedGraph, plan: Plan, dtype: torch.dtype | None, weights: Weights) -> Verdict:
    tensors = _tensors(graph, dtype, weights)
    pruned = cut(graph, plan, tensors)
    reference = _Reference(graph, plan, tensors, dtype)
    other = _Retyped(pruned.program.module, dtype)

    def outputs(interpreter: _Retyped, seed: int, batch: int) -> list[torch.Tensor]:
        inputs = _cast(randomised(graph.example, seed, batch), dtype)
        return _flat(interpreter.run(*placeholders(interpreter.graph_module, inputs)))

    with torch.no_grad():
        runs = [[outputs(i, seed, batch) for i in (reference, other)] for seed, batch in ((0, 2), (1, 3))]
        again = outputs(reference, 2, 2)
    expected = [r for ref, _ in runs for r in ref]
    scale = max((float(r.nan_to_num(0, 0, 0).abs().max()) for r in expected if r.numel()), default=0.0)
    error = max((_distance(r, g) for ref, got in runs for r, g in zip(ref, got, strict=True)), default=0.0)
    spread = max((_distance(a, b) for a, b in zip(runs[0][0], again, strict=True)), default=0.0)
    tolerance = TOLERANCE if dtype == torch.float64 else _COARSE.get(_coarsest(graph), COARSE_TOLERANCE)
    finite = all(bool(torch.isfinite(r).all()) for r in expected)
    return Verdict(error / scale if scale else error, tolerance, spread > 1e-6 * scale, finite or weights == "own")


_COARSE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}


def _coarsest(graph: TracedGraph) -> torch.dtype:
    return max(
        (p.dtype for p in graph.captured.parameters()), key=lambda d: torch.finfo(d).eps if d.is_floating_point else 0
    )


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference; infinite where only one of them is a number."""
    if a.shape != b.shape:
        return float("inf")
    apart = torch.where(a == b, 0.0, a - b).abs().nan_to_num(nan=float("inf"))
    return float(apart.max()) if a.numel() else 0.0


def _tensors(graph: TracedGraph, dtype: torch.dtype | None, weights: Weights) -> dict[str, torch.Tensor]:
    """Copies of parameters and buffers; tensors that were one object stay one."""
    generator = torch.Generator().manual_seed(0)
    done: dict[int, torch.Tensor] = {}
    result: dict[str, torch.Tensor] = {}
    for name, tensor in tensors_of(graph.captured).items():
        if id(tensor) not in done:
            data = tensor.detach().to("cpu").clone()
            if data.is_floating_point():
                data = data if dtype is None else data.to(dtype)
                data = data if weights == "own" else _drawn(data, generator, positive=weights == "positive")
            done[id(tensor)] = nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data
        result[name] = done[id(tensor)]
    return result


def _drawn(like: torch.Tensor, generator: torch.Generator, *, positive: bool) -> torch.Tensor:
    """Random values: vectors around one (variances are among them), matrices with columns of length one."""
    noise = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    if like.ndim < 2:
        return (noise.abs() + 0.5).to(like.dtype)
    noise = noise.abs() if positive else noise
    return (noise / sqrt(max(like[0].numel(), 1))).to(like.dtype)


class _Retyped(fx.Interpreter):
    """Runs a graph with every floating type that it names replaced by `dtype`."""

    def __init__(self, module: fx.GraphModule, dtype: torch.dtype | None):
        super().__init__(module)
        self.graph_module, self._dtype = module, dtype

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = pytree.tree_map(self._retyped, (args, kwargs))
        return super().call_function(target, args, kwargs)

    def _retyped(self, value: Any) -> Any:
        floating = self._dtype is not None and isinstance(value, torch.dtype) and value.is_floating_point
        return self._dtype if floating else value


class _Reference(_Retyped):
    """The original graph over tensors with zeros where positions were removed."""

    def __init__(
        self,
        graph: TracedGraph,
        plan: Plan,
        tensors: Mapping[str, torch.Tensor],
        dtype: torch.dtype | None,
    ):
        super().__init__(graph.captured, dtype)
        self._rules, self._ops = graph.inferred.rules, graph.inferred.ops
        self._atoms = {graph.atoms[n]: np.array(p) for n, p in plan.kept.items()}
        self._zeroed = _zero_removed(graph, plan, tensors)

    def fetch_attr(self, target: str) -> Any:
        return self._zeroed[target] if target in self._zeroed else super().fetch_attr(target)

    def run_node(self, n: fx.Node) -> Any:
        rule = self._rules.get(n)
        source = None if rule is None or rule.masked is None else bind(n)["input"]
        mask = None if source is None else self._mask(source, self.env[source].shape)
        if rule is None or rule.masked is None or mask is None:
            return self._quiet(n, super().run_node(n))
        args = {k: self.env[v] if isinstance(v, fx.Node) else v for k, v in bind(n).items()}
        return rule.masked(args, {"input": mask.to(args["input"].dtype)})

    def _quiet(self, n: fx.Node, value: Any) -> Any:
        """Division by a removed zero leaves no number there, and what sums over it has a zero weight: 0 · NaN is 0."""
        if n not in self._ops or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if torch.isfinite(value).all():
            return value
        mask = self._mask(n, value.shape)
        return value if mask is None else value.where(mask.bool() | torch.isfinite(value), torch.zeros_like(value))

    def _mask(self, n: fx.Node, shape: torch.Size) -> torch.Tensor | None:
        """1 at kept positions of the value of `n`, broadcastable against it; None where all stay."""
        op = next((self._ops[u] for u in (n, *n.users) if u in self._ops), None)
        mask: torch.Tensor | None = None
        for i, expr in enumerate([] if op is None else [op.resolve(e) for e in op.dims_of(n)]):
            if any(a in self._atoms for a in atoms_of(expr)):
                line = self._line(expr, shape[i]).reshape((-1,) + (1,) * (len(shape) - 1 - i))
                mask = line if mask is None else mask * line
        return mask

    def _line(self, expr: Expr, size: int) -> torch.Tensor:
        """1 at kept positions of one dim of `size`; a factor that nothing is removed from has what size is left."""
        line = torch.ones(1)
        factors = factors_of(expr)
        cut_ = [any(a in self._atoms for a in atoms_of(f)) for f in factors]
        rest = size // prod(f.size for f, c in zip(factors, cut_, strict=True) if c)
        for factor, touched in zip(factors, cut_, strict=True):
            part = torch.ones(1)
            if touched:
                part = torch.zeros(factor.size)
                part[torch.from_numpy(kept_indices(factor, self._atoms))] = 1
            elif factor.size <= rest and rest % factor.size == 0:
                part = torch.ones(factor.size)
                rest //= factor.size
            else:
                part = torch.ones(rest)
                rest = 1
            line = (line[:, None] * part[None, :]).reshape(-1)
        return line


def _zero_removed(graph: TracedGraph, plan: Plan, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies with zeros at the axes' own entries: another road than the index lists that surgery goes by."""
    twins: dict[int, list[str]] = {}
    for name, dims in graph.inferred.params.items():
        twins.setdefault(id(dims), []).append(name)
    zeroed = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for axis in graph.axes:
        removed = np.setdiff1d(np.arange(axis.size), plan.kept.get(axis.id, range(axis.size)))
        for member in axis.members if removed.size else ():
            index = torch.from_numpy(member.entries[removed].reshape(-1))
            for name in twins[id(graph.inferred.params[member.name])]:
                zeroed[name].index_fill_(member.dim, index, 0)
    return zeroed


def _cast(inputs: Example, dtype: torch.dtype | None) -> Example:
    def move(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        value = value.cpu()
        return value.to(dtype) if dtype is not None and value.is_floating_point() else value

    args, kwargs = pytree.tree_map(move, (inputs.args, dict(inputs.kwargs)))
    return Example(args, kwargs)


def _flat(output: Any) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves(output)
    return [v.double() for v in leaves if isinstance(v, torch.Tensor)]
