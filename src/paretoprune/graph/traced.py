"""The captured network with its axes: what `pp.trace` returns."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from paretoprune.core.axis import Axis
from paretoprune.core.block import Block
from paretoprune.core.errors import PlanError
from paretoprune.core.graph import BatchNorm, Contraction, Example
from paretoprune.core.layers import LayerSpec
from paretoprune.graph.algebra import Atom, Expr, atoms_of
from paretoprune.graph.axes import axes_of
from paretoprune.graph.blocks import Blocks, blocks_of
from paretoprune.graph.capture import capture
from paretoprune.graph.counts import MacTerms, elements_of, mac_terms, macs_of, parameters_of
from paretoprune.graph.functional import written
from paretoprune.graph.inference import Inferred, infer
from paretoprune.graph.inputs import registered
from paretoprune.graph.low_rank import LowRank, Split, low_rank_of, saved_macs, saved_parameters, thin_layers
from paretoprune.graph.model import check_example, check_model, private_copy, shared_storage, untouched_rng, unwrapped
from paretoprune.graph.op import Op, bind
from paretoprune.graph.opaque import opaque_tensors
from paretoprune.graph.positions import size_of
from paretoprune.graph.program import GraphProgram, runnable
from paretoprune.graph.shared import take_over


@dataclass(frozen=True)
class TracedGraph:
    """core.graph.Graph over the ATen graph of `torch.export`."""

    axes: tuple[Axis, ...]
    program: GraphProgram
    fingerprint: str
    example: Example
    notes: tuple[str, ...]
    captured: fx.GraphModule = field(repr=False)
    inferred: Inferred = field(repr=False)
    atoms: Mapping[str, Atom] = field(repr=False)
    """Axis id -> atom, for every axis."""

    def _widths(self, widths: Mapping[str, int] | None) -> dict[Atom, int]:
        if unknown := set(widths or {}) - set(self.atoms):
            raise PlanError(f"there is no axis {sorted(unknown)}; this network has {', '.join(self.atoms)}")
        return {self.atoms[axis]: width for axis, width in (widths or {}).items()}

    @cached_property
    def variants(self) -> dict[Any, TracedGraph]:
        """What was made of this graph by `graph.activations`, kept for the next who wants the same."""
        return {}

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The residual blocks in the order of the graph."""
        return self.residual.every

    @cached_property
    def residual(self) -> Blocks:
        """The blocks with the operators and tensors that go with each."""
        return blocks_of(self.captured, self.inferred, self._mac_terms, tensors_of(self.captured))

    @cached_property
    def low_rank(self) -> LowRank:
        """The layers that can become two thin ones, and why others cannot."""
        return low_rank_of(self.captured, self.inferred, self.program.contractions, tensors_of(self.captured))

    def split(self, weight: str, spatial: bool, widths: Mapping[str, int] | None = None) -> Split:
        """What a weight that can be factorised and two thin ones in its place cost, at these widths."""
        return self.low_rank.split(weight, spatial, self._widths(widths))

    def checked_ranks(
        self,
        ranks: Mapping[str, int] | None,
        widths: Mapping[str, int] | None = None,
        blocks: Sequence[str] = (),
        spatial: Collection[str] = (),
    ) -> dict[str, int]:
        """`ranks` as they are. Raises PlanError for what cannot be factorised at these widths, or saves nothing."""
        if not ranks:
            return {}
        gone = self.residual.gone_tensors(self.residual.named(blocks)) if blocks else ()
        return self.low_rank.checked(ranks, spatial, self._widths(widths), gone)

    def macs(
        self,
        widths: Mapping[str, int] | None = None,
        blocks: Sequence[str] = (),
        ranks: Mapping[str, int] | None = None,
        spatial: Collection[str] = (),
    ) -> int:
        """Multiply-accumulates of one sample of what is left, other dynamic dims as in the example."""
        gone = self.residual.gone(self.residual.named(blocks)) if blocks else ()
        by_atom, samples = self._widths(widths), self.inferred.samples
        total = macs_of(self._mac_terms, samples, by_atom, gone)
        if not (thin := self.checked_ranks(ranks, widths, blocks, spatial)):
            return total

        def of(node: fx.Node) -> int:
            return macs_of([t for t in self._mac_terms if t[0] is node], samples, by_atom)

        return total - saved_macs(self.low_rank, thin, spatial, by_atom, of)

    def macs_by_weight(self) -> dict[str, int]:
        """Multiply-accumulates of one sample by the parameter that is multiplied with; a layer's first matrix."""
        found: dict[str, int] = {}
        for node, term in self._mac_terms:
            read = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
            weight = next((n for n in read if len(self.inferred.params.get(n, ())) > 1), None)
            if weight is not None:
                found[weight] = found.get(weight, 0) + macs_of([(node, term)], self.inferred.samples, {})
        return found

    @cached_property
    def _mac_terms(self) -> MacTerms:
        return mac_terms(self.inferred)

    def elements(self, widths: Mapping[str, int] | None = None, blocks: Sequence[str] = ()) -> int:
        """Numbers that all operators write for one sample: what passes through memory between the layers."""
        gone = self.residual.gone(self.residual.named(blocks)) if blocks else frozenset()
        return elements_of(self.inferred, self.inferred.samples, self._widths(widths), gone)

    def parameters(
        self,
        widths: Mapping[str, int] | None = None,
        blocks: Sequence[str] = (),
        ranks: Mapping[str, int] | None = None,
        spatial: Collection[str] = (),
    ) -> int:
        """Parameters of what is left; tied ones count once."""
        gone = self.residual.gone_tensors(self.residual.named(blocks)) if blocks else ()
        by_atom = self._widths(widths)
        total = parameters_of(self.captured, self.inferred, by_atom, gone)
        thin = self.checked_ranks(ranks, widths, blocks, spatial)
        return total - saved_parameters(self.low_rank, thin, spatial, by_atom) if thin else total

    def layers(
        self,
        widths: Mapping[str, int] | None = None,
        blocks: Sequence[str] = (),
        ranks: Mapping[str, int] | None = None,
        spatial: Collection[str] = (),
    ) -> tuple[LayerSpec, ...]:
        """Shapes of the convolutions and linear layers that are left, in the order of the graph."""
        by_atom = self._widths(widths)
        gone = self.residual.gone(self.residual.named(blocks)) if blocks else frozenset()
        thin = self.checked_ranks(ranks, widths, blocks, spatial)
        weights = {self.low_rank.layers[w].op.node: w for w in thin}
        specs: list[LayerSpec] = []
        for op, spec in self._layer_ops:
            if op.node in gone:
                continue
            groups, into, out = (size_of(op.resolve(op.memo[k]), by_atom) for k in ("groups", "into", "out"))
            left = replace(spec, inputs=groups * into, outputs=out, groups=groups)
            weight = weights.get(op.node, "")
            specs += thin_layers(left, thin[weight], weight in spatial) if weight else (left,)
        return tuple(specs)

    def layer_weights(self, blocks: Sequence[str] = ()) -> tuple[str, ...]:
        """By layer of `layers(…, blocks)`, the name of its weight; empty where that is computed."""
        gone = self.residual.gone(self.residual.named(blocks)) if blocks else frozenset()
        weights = [op.args.get("weight") for op, _ in self._layer_ops if op.node not in gone]
        return tuple(str(w.target) if isinstance(w, fx.Node) and w.op == "get_attr" else "" for w in weights)

    @cached_property
    def _layer_ops(self) -> list[tuple[Op, LayerSpec]]:
        found = self.inferred
        return [
            (op, spec)
            for node, op in found.ops.items()
            if (describe := found.rules[node].layer) is not None and (spec := describe(op)) is not None
        ]


def trace(model: nn.Module, example: Any, dynamic: Mapping[str, Iterable[int]] | None = None) -> TracedGraph:
    """Capture `model` and find its axes. The model is not changed.

    The graph reads the model's own parameters, which are not copied: train them after it and the graph changes too.
    `example`: a tensor, a tuple of positional inputs, or a dict of keyword inputs; dimension 0 of each is dynamic.
    `dynamic`: further dynamic dims by input name. Raises ModelError, CaptureError, DataError.
    """
    model, wrappers = unwrapped(model)
    check_model(model)
    inputs = Example.of(example)
    wrappers += registered((inputs.args, dict(inputs.kwargs)))
    check_example(model, inputs)
    with untouched_rng(model):
        clone, notes = private_copy(model)
        captured = capture(clone, inputs, dynamic)
    take_over(captured.module, written(captured.module.graph))
    return analyse(captured.module, captured.example, (*wrappers, *notes, *captured.notes), shared_storage(model))


def analyse(
    captured: fx.GraphModule, example: Example, notes: tuple[str, ...] = (), frozen: Mapping[str, str] | None = None
) -> TracedGraph:
    """Axes of a captured graph. `frozen`: parameter or buffer -> why it must stay as it is."""
    opaque = opaque_tensors(captured)
    frozen = {**_unreached(captured, opaque), **(frozen or {})}
    found, second = (infer(captured, {**frozen, **opaque}, run) for run in (0, 1))
    _agree(found, second)
    atoms, axes = axes_of(found)
    unreached = [f"{why}: it stays as it is" for why in frozen.values()]
    program = GraphProgram(runnable(captured), _contractions(found), _batch_norms(found))
    every = (*notes, *dict.fromkeys(found.notes), *unreached)
    return TracedGraph(axes, program, _fingerprint(found, axes), example, every, captured, found, atoms)


def _unreached(captured: fx.GraphModule, opaque: Mapping[str, str]) -> dict[str, str]:
    """Parameters that no operator and no opaque submodule reads, under none of their names."""
    tensors = tensors_of(captured)
    read = {
        id(tensors[str(n.target)])
        for n in captured.graph.nodes
        if n.op == "get_attr" and n.users and str(n.target) in tensors
    }
    names = dict(captured.named_parameters(remove_duplicate=False))
    return {n: f"nothing reads parameter '{n}'" for n, p in names.items() if id(p) not in read and n not in opaque}


def _agree(a: Inferred, b: Inferred) -> None:
    """What two dynamic sizes see differently is a coincidence of sizes: freeze it."""
    for name in a.params:
        for x, y in zip(a.resolved(name), b.resolved(name), strict=True):
            if _shape_of(a, x) != _shape_of(b, y):
                a.axes.freeze(x, "two batch sizes relate it differently")


def _shape_of(found: Inferred, expr: Expr) -> list[tuple[int, bool]]:
    """Sizes of the atoms that may be pruned, with a single size for each run of those that may not."""
    result: list[tuple[int, bool]] = []
    for atom in atoms_of(expr):
        closed = bool(found.axes.frozen(atom))
        if not (closed and result and result[-1][1]):
            result.append((0 if closed else atom.size, closed))
    return result


def _contractions(found: Inferred) -> tuple[Contraction, ...]:
    """Contractions without groups whose weight is a parameter of their own."""
    uses = Counter(id(found.params[str(n.target)]) for n in found.dims if n.op == "get_attr" for _ in n.users)
    result: list[Contraction] = []
    for node, op in found.ops.items():
        rule = found.rules[node]
        if rule.rows is None or (rule.layer is not None and not _whole(rule.layer(op))):
            continue
        for weight, bias in [(op.args["weight"], op.args.get("bias"))] if rule.reads is None else rule.reads(op):
            own = isinstance(weight, fx.Node) and weight.op == "get_attr"
            if own and uses[id(found.params[str(weight.target)])] == 1:
                result.append(_contraction(op, rule.rows, weight, bias))
    return tuple(result)


def _whole(spec: Any) -> bool:
    return spec is not None and spec.groups == 1


def _contraction(op: Op, rows: Callable[[Op, torch.Tensor], torch.Tensor], weight: fx.Node, bias: Any) -> Contraction:
    readers = list(op.node.users)
    alone = len(readers) == 1 and _is_batch_norm(readers[0])
    return Contraction(
        node=op.node.name,
        weight=str(weight.target),
        bias=str(bias.target) if isinstance(bias, fx.Node) and bias.op == "get_attr" else None,
        input_dim=1,
        rows=lambda x: rows(op, x),
        matrix=lambda w: w.reshape(w.shape[0], -1),
        unmatrix=lambda m, shape: m.reshape(shape),
        dim=1 - len(op.shape_of(weight)),
        batch_norm=readers[0].name if alone else None,
    )


def _is_batch_norm(node: fx.Node) -> bool:
    """A batch normalisation by running statistics that are buffers of its own."""
    if str(node.target) != "aten.batch_norm.default":
        return False
    args = bind(node)
    return all(isinstance(args[k], fx.Node) and args[k].op == "get_attr" for k in ("running_mean", "running_var"))


def _only_norm(node: fx.Node) -> str | None:
    """The batch norm that alone reads what the node gives."""
    users = list(node.users)
    alone = len(users) == 1 and str(users[0].target) == "aten.batch_norm.default" and users[0].args[0] is node
    return users[0].name if alone else None


def _batch_norms(found: Inferred) -> tuple[BatchNorm, ...]:
    return tuple(
        BatchNorm(
            n.name,
            str(op.args["running_mean"].target),
            str(op.args["running_var"].target),
            str(scale.target) if isinstance(scale := op.args["weight"], fx.Node) and scale.op == "get_attr" else None,
        )
        for n, op in found.ops.items()
        if _is_batch_norm(n)
    )


def _fingerprint(found: Inferred, axes: tuple[Axis, ...]) -> str:
    text = repr([(n, [e.size for e in d]) for n, d in found.params.items()])
    text += repr([(a.id, a.size, a.prunable, [(m.name, m.dim) for m in a.members]) for a in axes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by every name, tied ones under each of theirs."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(module.named_buffers(remove_duplicate=False))}
