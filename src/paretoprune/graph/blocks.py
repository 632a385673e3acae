"""Residual blocks `s = x + f(x)`: which there are, which of them can go, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import fx

from paretoprune.core.block import Block
from paretoprune.core.errors import PlanError
from paretoprune.graph.counts import MacTerms, macs_of
from paretoprune.graph.depth import dying, dying_tensors, is_root
from paretoprune.graph.functional import memory_of, written_values
from paretoprune.graph.inference import Inferred, paths_of, where
from paretoprune.graph.opaque import opaque_tensors
from paretoprune.graph.residual import Flow, Residual

CHANGES_SHAPE = "it changes the shape: what enters it cannot stand in its place"
OWN_SHORTCUT = "its shortcut is no copy of what enters it"
MAX_NAMES = 12


@dataclass(frozen=True)
class Blocks:
    """All residual blocks in the order of the graph, with the sum of each and the operand that can take its place."""

    module: fx.GraphModule
    tensors: dict[str, torch.Tensor]
    every: tuple[Block, ...]
    skips: dict[str, tuple[fx.Node, fx.Node]]

    def named(self, patterns: Iterable[str]) -> tuple[str, ...]:
        """Names of the removable blocks that these names and patterns mean, in the order of the graph.

        Raises PlanError for one that means no block, or only blocks that cannot go.
        """
        key = tuple(patterns)
        if key not in self._named:
            self._named[key] = self._matching(key)
        return self._named[key]

    def _matching(self, patterns: Sequence[str]) -> tuple[str, ...]:
        wanted: set[str] = set()
        exact = {b.name: b for b in self.every}
        for pattern in patterns:
            found = (
                [exact[pattern]] if pattern in exact else [b for b in self.every if fnmatchcase(b.name, str(pattern))]
            )
            if not found:
                raise PlanError(f"there is no block '{pattern}': {self._there_are()}")
            free = [b.name for b in found if b.removable]
            if not free:
                why = "; ".join(dict.fromkeys(f"'{b.name}': {b.why}" for b in found[:4]))
                raise PlanError(f"cannot remove block '{pattern}' ({why}); {self._there_are(removable=True)}")
            wanted.update(free)
        return tuple(b.name for b in self.every if b.name in wanted)

    def _there_are(self, *, removable: bool = False) -> str:
        names = [f"'{b.name}'" for b in self.every if b.removable or not removable]
        kind = "removable residual block" if removable else "residual block"
        if not names:
            return f"this network has no {kind}"
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        return f"this network has the {kind}s {', '.join(names[:MAX_NAMES])}{more}"

    def sums(self, names: Sequence[str]) -> dict[fx.Node, fx.Node]:
        """Sum -> the operand that takes its place; `names` are exact."""
        return dict(self.skips[name] for name in names)

    def gone(self, names: Sequence[str]) -> frozenset[fx.Node]:
        """The operators that go with these blocks."""
        key = tuple(names)
        if key not in self._gone:
            self._gone[key] = frozenset(dying(self.sums(names))) if names else frozenset()
        return self._gone[key]

    def gone_tensors(self, names: Sequence[str]) -> frozenset[str]:
        """Parameters and buffers that go with these blocks."""
        key = tuple(names)
        if key not in self._gone_tensors:
            gone = self.gone(names)
            found = dying_tensors(self.tensors, self.module.graph, gone, opaque_tensors(self.module)) if gone else ()
            self._gone_tensors[key] = frozenset(found)
        return self._gone_tensors[key]

    @cached_property
    def _named(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        return {}

    @cached_property
    def _gone(self) -> dict[tuple[str, ...], frozenset[fx.Node]]:
        return {}

    @cached_property
    def _gone_tensors(self) -> dict[tuple[str, ...], frozenset[str]]:
        return {}


def blocks_of(module: fx.GraphModule, found: Inferred, terms: MacTerms, tensors: dict[str, torch.Tensor]) -> Blocks:
    """Find the blocks. `terms`: what every operator multiplies, to count what goes; `tensors` by every name."""
    finder = _Finder(module, found)
    every: list[Block] = []
    skips: dict[str, tuple[fx.Node, fx.Node]] = {}
    by_node: dict[fx.Node, MacTerms] = {}
    for term in terms:
        by_node[term[0]] = [*by_node.get(term[0], ()), term]
    reads = _Reads(tensors, module.graph)
    candidates = list(finder.found())
    weights_of = {r.sum: finder.weights(r) for r, _ in candidates}
    names = _names({r: finder.name(r, weights_of[r.sum]) for r, _ in candidates})
    for residual, why in candidates:
        weights, name = weights_of[residual.sum], names[residual]
        gone = finder.branch(residual) if why else dying({residual.sum: residual.skip})
        macs = macs_of([t for n in gone for t in by_node.get(n, ())], found.samples, {})
        every.append(Block(name, not why, why, reads.parameters(gone), macs, weights))
        skips[name] = residual.sum, residual.skip
    return Blocks(module, tensors, tuple(every), skips)


class _Reads:
    """Who reads which parameter, to count what a block alone takes with it."""

    def __init__(self, tensors: dict[str, torch.Tensor], graph: fx.Graph):
        self._of: dict[int, set[fx.Node]] = {}
        self._tensor: dict[fx.Node, torch.Tensor] = {}
        for node in graph.nodes:
            tensor = tensors.get(str(node.target)) if node.op == "get_attr" and node.users else None
            if isinstance(tensor, torch.nn.Parameter):
                self._of.setdefault(id(tensor), set()).add(node)
                self._tensor[node] = tensor

    def parameters(self, gone: set[fx.Node]) -> int:
        lost = {id(self._tensor[n]): self._tensor[n] for n in gone if n in self._tensor}
        return sum(t.numel() for key, t in lost.items() if self._of[key] <= gone)


def _laid_out(node: fx.Node) -> fx.Node:
    """What operators of one tensor each make a layer's weight from."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node


def _names(wanted: Mapping[Residual, str]) -> dict[Residual, str]:
    """Names that are told apart by numbers; a sum whose shortcut is no copy gives way to the others."""
    names: dict[Residual, str] = {}
    taken: set[str] = set()
    for residual in sorted(wanted, key=lambda r: r.projected):
        name, k = wanted[residual], 2
        while name in taken:
            name, k = f"{wanted[residual]}#{k}", k + 1
        taken.add(name)
        names[residual] = name
    return names


class _Finder:
    def __init__(self, module: fx.GraphModule, found: Inferred):
        self.flow = Flow(found)
        self.inferred = found
        named = dict(module.named_parameters(remove_duplicate=False))
        by_id: dict[int, list[str]] = {}
        for name, parameter in named.items():
            by_id.setdefault(id(parameter), []).append(name)
        self.twins = {name: by_id[id(parameter)] for name, parameter in named.items()}
        self.matrix = {name: parameter.ndim > 1 for name, parameter in named.items()}
        self.written = {m for n in written_values(module.graph) for m in memory_of(n)}

    def found(self) -> Iterator[tuple[Residual, str]]:
        """(sum, why it cannot be removed) of every block, in the order of the graph."""
        for total, one, other in self.flow.sums():
            if total not in self.flow.active:
                continue
            residual = self.flow.residual(total, one, other)
            if residual is not None:
                if str(total.target).startswith("aten.sub") and residual.branch is not other:
                    continue  # f(x) - x
                yield residual, self._why(residual)
            elif (projected := self._projected(total, one, other)) is not None:
                yield projected

    def _why(self, r: Residual) -> str:
        """Why the skip cannot stand in the place of the sum; empty if it can."""
        if why := self._unlike(r):
            return why
        if r.skip not in self.flow.active:
            return "what it adds to depends on no input, so that without it an output might not either"
        inside = self.flow.between(r.start, r.branch)
        writer = next((n for n in inside if is_root(n)), None)
        if writer is not None:
            runs = "is run as it is" if writer.op == "call_module" else "writes into memory"
            return f"{where(writer)} within it {runs}"
        if is_root(r.sum) or (memory_of(r.sum) | memory_of(r.skip)) & self.written:
            return "the value that it adds to, or the sum, is written into"
        living = inside - dying({r.sum: r.skip})
        if living:
            last = max(living, key=self.flow.order.__getitem__)
            written = any(is_root(u) and u.op != "output" for u in last.users)
            return f"{where(last)} within it is {'written into' if written else 'read from outside, or is an output'}"
        return ""

    def _unlike(self, r: Residual) -> str:
        """Why the three are not of one kind."""
        types = {n.meta["val"].dtype for n in (r.sum, r.skip, r.branch)}
        if self._shape(r.skip) != self._shape(r.sum):
            return CHANGES_SHAPE
        if self._shape(r.branch) != self._shape(r.sum):
            return "what it adds is broadcast over what enters it"
        if len(types) > 1:
            return "it changes the type"
        if r.sum.kwargs.get("alpha", 1) != 1:
            return f"its sum has alpha={r.sum.kwargs['alpha']}"
        return ""

    def _shape(self, node: fx.Node) -> list[int]:
        return [e.size for e in self.inferred.flat(node)]

    def _projected(self, total: fx.Node, one: fx.Node, other: fx.Node) -> tuple[Residual, str] | None:
        """A block whose shortcut is a layer, a pooling or a padding: one operand after another of few operators."""
        for shortcut, branch in ((one, other), (other, one)):
            layers, node = int(self.flow.contracts(shortcut)), self._before(shortcut)
            while layers < 2 and node is not None:
                if self.flow.order[node] < self.flow.order[branch] and self.flow.leads_to(node, branch):
                    deep = sum(map(self.flow.contracts, self.flow.between(node, branch)))
                    same = self._shape(node) == self._shape(total)
                    return (
                        (
                            Residual(total, shortcut, branch, node, projected=True),
                            OWN_SHORTCUT if same else CHANGES_SHAPE,
                        )
                        if (deep > layers)
                        else None
                    )
                layers += self.flow.contracts(node)
                node = self._before(node)
        return None

    def _before(self, node: fx.Node) -> fx.Node | None:
        """The one value that an operator works on besides parameters."""
        sources = [n for n in node.all_input_nodes if n in self.flow.active]
        return sources[0] if len(sources) == 1 else None

    def weights(self, r: Residual) -> tuple[str, ...]:
        """Matrices that the layers of the branch read, in the order of the graph; a bias follows its weight.

        What was computed from parameters (a table of position biases, say) may belong to another block.
        """
        order = self.flow.order
        layers = sorted(filter(self.flow.contracts, self.flow.between(r.start, r.branch)), key=order.__getitem__)
        read = [(layer, _laid_out(n)) for layer in layers for n in layer.all_input_nodes if n not in self.flow.active]
        weights = [(layer, str(n.target)) for layer, n in read if n.op == "get_attr" and str(n.target) in self.twins]
        return tuple(dict.fromkeys(self._own_name(*pair) for pair in weights if self.matrix[pair[1]]))

    def _own_name(self, layer: fx.Node, name: str) -> str:
        """Of the names of a tied weight the one in the module that the layer stands in."""
        inner = paths_of(layer)
        mine = [n for n in self.twins[name] if inner and n.rpartition(".")[0] == inner[-1]]
        return mine[0] if mine else name

    def name(self, r: Residual, weights: Sequence[str]) -> str:
        """The longest module path that the weights have in common, else the module of the sum, else the first's."""
        paths = [name.split(".")[:-1] for name in weights]
        shared: list[str] = []
        for parts in zip(*paths, strict=False):
            if len(set(parts)) > 1:
                break
            shared.append(parts[0])
        inner = paths_of(r.sum)
        return ".".join(shared) or (inner[-1] if inner else "") or (".".join(paths[0]) if paths else "") or "block"

    def branch(self, r: Residual) -> set[fx.Node]:
        """The operators of f and the tensors that they read."""
        inside = self.flow.between(r.start, r.branch)
        return inside | {n for node in inside for n in node.all_input_nodes if n.op == "get_attr"}
