"""The dead-channel reference: the original network with every removed entry set to zero.

Normalisations take their statistics over kept positions. A pruned network that differs from it is wrong.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import repeat
from math import prod
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from paretoprune.core.errors import SurgeryError
from paretoprune.core.graph import Example, placeholders
from paretoprune.core.plan import Plan
from paretoprune.graph.activations import activated
from paretoprune.graph.algebra import Expr, atoms_of, factors_of
from paretoprune.graph.explain import first_line, user_line
from paretoprune.graph.op import WHOLE, bind
from paretoprune.graph.opaque import carried
from paretoprune.graph.positions import kept_indices
from paretoprune.graph.surgery import cut, dropped
from paretoprune.graph.traced import TracedGraph, tensors_of
from paretoprune.graph.values import Readable, Side, Values, Weights

TOLERANCE = 1e-8
"""Largest allowed difference over the outputs' scale, in double precision."""
COARSE_TOLERANCE = 1e-4
"""The same where the graph fixes single precision."""


def randomised(example: Example, seed: int, batch: int) -> Example:
    """Inputs of the example's kinds with other values: normal around its mean, integers within its range."""
    generator = torch.Generator().manual_seed(seed)
    leaves = pytree.tree_leaves((example.args, dict(example.kwargs)))
    fixed = any(_offsets(v, leaves) for v in leaves)
    entries = iter(repeat(1) if example.per_sample is None else example.per_sample)

    def draw(value: Any) -> Any:
        per_sample = next(entries)
        if not isinstance(value, torch.Tensor) or _offsets(value, leaves):
            return value
        value = value.detach()
        whole = fixed or not value.ndim or not per_sample
        shape = value.shape if whole else (batch * per_sample, *value.shape[1:])
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


def _offsets(value: Any, leaves: list[Any]) -> bool:
    """Where the samples of another list begin: such an input is no free choice, and fixes how long the others are."""
    if not _list(value) or value[0] != 0 or bool((value.diff() < 0).any()):
        return False
    return any(_list(v) and len(v) != len(value) and 0 < int(value[-1]) <= len(v) for v in leaves)


def _list(value: Any) -> bool:
    integer = isinstance(value, torch.Tensor) and value.dtype in (torch.int32, torch.int64)
    return integer and value.ndim == 1 and len(value) > 1


def check(graph: TracedGraph, plan: Plan) -> None:
    """Cut a double-precision copy and compare it with the reference on randomised inputs.

    Once with the network's own weights and once with random ones, which reach what own zeros would hide. Raises
    SurgeryError naming the axes if they differ, or if the reference's output varies with its input neither way, for
    then the comparison would prove nothing.
    """
    graph, plan = activated(graph, plan.activations), replace(plan, activations={})
    varies = False
    for weights in ("own", "random", "positive"):
        if weights == "positive" and varies:
            return
        verdict = _compare(graph, plan, weights, vary=not varies)
        varies = varies or verdict.varies
        if not verdict.agrees:
            raise SurgeryError(
                f"the pruned network differs from the dead-channel reference by {verdict.error:.3g} of the output's "
                f"scale (allowed {verdict.tolerance:g}) after {_culprits(graph, plan)}; "
                "leave these out (axes with ignore=) and report the network"
            )
    if not varies:
        raise SurgeryError(
            "the self-check proves nothing: the network's output does not vary with its input, "
            "neither with its own weights nor with random ones; give an example on which it does"
        )


def _culprits(graph: TracedGraph, plan: Plan) -> str:
    """The axes and blocks that are wrong when they go alone; all of them where none is."""
    every = {f"pruning '{name}'": Plan({name: kept}) for name, kept in plan.kept.items()}
    every |= {f"dropping block '{name}'": Plan(blocks=(name,)) for name in dropped(graph, plan)}
    alone = [
        what
        for what, one in every.items()
        if not all(_compare(graph, one, weights, vary=False).agrees for weights in ("own", "random"))
    ]
    return ", ".join(alone or every)


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


def _compare(graph: TracedGraph, plan: Plan, weights: Weights, *, vary: bool) -> Verdict:
    """In double precision; in the network's own where its graph insists on that. `vary`: ask whether outputs vary."""
    with suppress(TypeInsisted):
        return _compare_in(graph, plan, torch.float64, weights, vary)
    return _compare_in(graph, plan, None, weights, vary)


class TypeInsisted(Exception):
    """An operator does not take double precision beside what the graph fixes."""


def _compare_in(graph: TracedGraph, plan: Plan, dtype: torch.dtype | None, weights: Weights, vary: bool) -> Verdict:
    pruned = cut(graph, plan, _shapes(graph))
    values = Values(graph, dtype, weights)
    reference = _Reference(graph, plan, Side(graph, plan, values), dtype)
    other = Retyped(pruned.program.module, Side(graph, plan, values, pruned.kept), dtype)

    return judged(graph, reference, other, weights, vary)


def judged(graph: TracedGraph, reference: Retyped, other: Retyped, weights: Weights, vary: bool = False) -> Verdict:
    """Run both on randomised inputs of two batch sizes. Raises TypeInsisted."""
    dtype = reference.dtype

    def outputs(interpreter: Retyped, seed: int, batch: int) -> list[torch.Tensor]:
        inputs = cast(randomised(graph.example, seed, batch), dtype)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(
                    seed
                )  # what is drawn in eval mode is frozen, so that both sides draw the same
                return flat(interpreter.run(*placeholders(interpreter.graph_module, inputs)))
        except RuntimeError as error:
            if dtype is not None and "type" in str(error):
                raise TypeInsisted from None
            raise

    with torch.no_grad():
        runs = [[outputs(i, seed, batch) for i in (reference, other)] for seed, batch in ((0, 2), (1, 3))]
        again = outputs(reference, 2, 2) if vary else []
    expected = [r for ref, _ in runs for r in ref]
    scale = max((float(r.nan_to_num(0, 0, 0).abs().max()) for r in expected if r.numel()), default=0.0)
    error = max((distance(r, g) for ref, got in runs for r, g in zip(ref, got, strict=True)), default=0.0)
    spread = max((distance(a, b) for a, b in zip(runs[0][0], again, strict=True)), default=0.0) if vary else 0.0
    tolerance = TOLERANCE if dtype == torch.float64 else _COARSE.get(_coarsest(graph), COARSE_TOLERANCE)
    finite = all(bool(torch.isfinite(r).all()) for r in expected)
    return Verdict(error / scale if scale else error, tolerance, spread > 1e-6 * scale, finite or weights == "own")


def _shapes(graph: TracedGraph) -> dict[str, torch.Tensor]:
    """The network's tensors without values; tensors that were one object stay one."""
    done: dict[int, torch.Tensor] = {}
    return {n: done.setdefault(id(t), _without_values(t)) for n, t in tensors_of(graph.captured).items()}


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


_COARSE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}


def _coarsest(graph: TracedGraph) -> torch.dtype:
    return max(
        (p.dtype for p in graph.captured.parameters()), key=lambda d: torch.finfo(d).eps if d.is_floating_point else 0
    )


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference; infinite where only one of them is a number."""
    if a.shape != b.shape:
        return float("inf")
    apart = torch.where(a == b, 0.0, a - b).abs().nan_to_num(nan=float("inf"))
    return float(apart.max()) if a.numel() else 0.0


@dataclass(frozen=True)
class _Unmade:
    """A parameter or buffer that no operator has read yet."""

    name: str


class Retyped(fx.Interpreter):
    """Runs a graph over the tensors of `side`, every floating type that the graph names replaced by `dtype`.

    A tensor is made for the operator that reads it, and a value is dropped after its last use.
    """

    def __init__(self, module: fx.GraphModule, side: Readable, dtype: torch.dtype | None):
        super().__init__(module)
        self.graph_module, self._side, self.dtype = module, side, dtype
        self.extra_traceback = False

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _Unmade(target) if target in self._side else super().get_attr(target, args, kwargs)

    def map_nodes_to_values(self, args: Any, n: fx.Node) -> Any:
        return fx.map_arg(args, self.value)

    def value(self, n: fx.Node) -> Any:
        value = self.env[n]
        return self._side[value.name] if isinstance(value, _Unmade) else value

    def run_node(self, n: fx.Node) -> Any:
        """A linear layer over a large weight reads it some rows at a time."""
        weight = n.args[1] if n.target is torch.ops.aten.linear.default and len(n.args) > 1 else None
        unmade = self.env.get(weight) if isinstance(weight, fx.Node) else None
        if not isinstance(unmade, _Unmade) or not self._side.large(unmade.name):
            return super().run_node(n)
        given: list[Any] = [self.value(a) if isinstance(a, fx.Node) and a is not weight else a for a in n.args]
        x, _, *bias = given
        product = torch.cat([nn.functional.linear(x, rows) for rows in self._side.rows(unmade.name)], -1)
        return product if not bias or bias[0] is None else product + bias[0]

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        part = carried(self.graph_module, str(target), self._side.__getitem__)
        try:
            return part(*args, **kwargs)
        except Exception as error:  # the user's own code raises anything
            if self.dtype is not None:
                raise TypeInsisted from error
            raise SurgeryError(
                f"'{target}', which is run as it is, fails on the random inputs of the self-check: "
                f"{first_line(error)}{user_line(error)}; leave out with ignore= what stands before it"
            ) from error

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = pytree.tree_map(self._retyped, (args, kwargs))
        return super().call_function(target, args, kwargs)

    def _retyped(self, value: Any) -> Any:
        if self.dtype is None or not isinstance(value, torch.dtype):
            return value
        if value.is_complex and self.dtype == torch.float64:
            return torch.complex128
        return self.dtype if value.is_floating_point else value


class _Reference(Retyped):
    """The original graph over tensors with zeros where positions were removed."""

    def __init__(
        self,
        graph: TracedGraph,
        plan: Plan,
        side: Side,
        dtype: torch.dtype | None,
    ):
        super().__init__(graph.captured, side, dtype)
        self._rules, self._ops = graph.inferred.rules, graph.inferred.ops
        self._atoms = {graph.atoms[n]: np.array(p) for n, p in plan.kept.items()}
        self._skips = graph.residual.sums(dropped(graph, plan)) if plan.blocks else {}

    def run_node(self, n: fx.Node) -> Any:
        if n in self._skips:  # the branch is run and counts nothing
            operands = (self.value(a) for a in n.args[:2] if isinstance(a, fx.Node))
            skip = self.value(self._skips[n])
            return sum((torch.zeros_like(v) for v in operands if v is not skip), skip)
        rule = self._rules.get(n)
        masked = None if rule is None or WHOLE in self._ops[n].memo else rule.masked
        args = {} if masked is None else bind(n)
        name = "input" if "input" in args else "self"
        mask = None if masked is None else self._mask(args[name], self.value(args[name]).shape)
        if masked is None or mask is None:
            return self._quiet(n, super().run_node(n))
        args = {k: self.value(v) if isinstance(v, fx.Node) else v for k, v in args.items()}
        return masked(args, {name: mask.to(args[name].dtype)})

    def _quiet(self, n: fx.Node, value: Any) -> Any:
        """Division by a removed zero leaves no number there, and what sums over it has a zero weight: 0 · NaN is 0."""
        if n not in self._ops or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if value.sum().isfinite() or torch.isfinite(value).all():  # the sum alone needs no memory
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


def cast(inputs: Example, dtype: torch.dtype | None) -> Example:
    def move(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        value = value.cpu()
        return value.to(dtype) if dtype is not None and value.is_floating_point() else value

    args, kwargs = pytree.tree_map(move, (inputs.args, dict(inputs.kwargs)))
    return Example(args, kwargs)


def flat(output: Any) -> list[torch.Tensor]:
    leaves = [v.resolve_conj() for v in pytree.tree_leaves(output) if isinstance(v, torch.Tensor)]
    return [(torch.view_as_real(v) if v.is_complex() else v).double() for v in leaves]
