"""Sums `x + f(x)`: where a network adds to a value what layers made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from paretoprune.graph.inference import Inferred
from paretoprune.graph.rules import shape

_ADDITIONS = frozenset({"aten.add.Tensor", "aten.sub.Tensor", "aten.add_.Tensor", "aten.sub_.Tensor"})


@dataclass(frozen=True)
class Residual:
    """`sum` adds `branch` to `skip` (or subtracts one of the two).

    `start` is `skip` before casts, copies and dropouts: what the branch is made from; where it is `projected`, before
    a few operators.
    """

    sum: fx.Node
    skip: fx.Node
    branch: fx.Node
    start: fx.Node
    projected: bool = False


class Flow:
    """How values of a captured graph follow from each other. Rank in the graph by node in `order`."""

    def __init__(self, found: Inferred):
        self.found = found
        self.active = _active(found)
        self.order = {node: i for i, node in enumerate(found.dims)}

    def sums(self) -> Iterator[tuple[fx.Node, fx.Node, fx.Node]]:
        """(sum, first operand, second operand) of every sum or difference of two tensors."""
        for node in self.found.dims:
            operands = [a for a in node.args[:2] if isinstance(a, fx.Node) and a in self.order]
            if str(node.target) in _ADDITIONS and len(operands) == 2:
                yield node, operands[0], operands[1]

    def residual(self, total: fx.Node, one: fx.Node, other: fx.Node) -> Residual | None:
        """The sum as `x + f(x)`; None where neither operand is made from the other one by layers."""
        first, second = sorted((one, other), key=lambda n: self.order[self.stripped(n)])
        for start in self._layers_of(first):
            if self.leads_to(start, second):
                return Residual(total, first, second, start)
        return None

    def contracts(self, node: fx.Node) -> bool:
        """Is it a layer: a product that is summed over?"""
        return node in self.found.rules and self.found.rules[node].macs is not None

    def stripped(self, node: fx.Node) -> fx.Node:
        """The value that a cast, a copy or a dropout passes on."""
        return list(self._layers_of(node))[-1]

    def _layers_of(self, node: fx.Node) -> Iterator[fx.Node]:
        """The value, then what stands under each cast, copy or dropout."""
        yield node
        while node in self.found.rules and self.found.rules[node].infer is shape.same:
            node = self.found.ops[node].tensors()[0]
            yield node

    def leads_to(self, start: fx.Node, end: fx.Node) -> bool:
        """Is `start` an ancestor of `end`, and every way between them through a layer? Looks only between the two.

        An activation function that is written as a sum is no residual block.
        """
        first, found = self.order[start], False
        stack, seen = [(end, False)], {(end, False)}
        while stack:
            node, passed = stack.pop()
            passed = passed or self.contracts(node)
            for source in node.all_input_nodes:
                if source is start:
                    if not passed:
                        return False
                    found = True
                elif (source, passed) not in seen and self.order.get(source, -1) > first:
                    seen.add((source, passed))
                    stack.append((source, passed))
        return found

    def between(self, start: fx.Node, end: fx.Node) -> set[fx.Node]:
        """Values on some way from `start`, which is not among them, to `end`, which is."""
        first = self.order[start]
        stack, above = [end], {end}
        while stack:
            for source in stack.pop().all_input_nodes:
                if source not in above and self.order.get(source, -1) > first:
                    above.add(source)
                    stack.append(source)
        reached = {start}
        for node in sorted(above, key=self.order.__getitem__):
            if any(source in reached for source in node.all_input_nodes):
                reached.add(node)
        return reached - {start}


def _active(found: Inferred) -> set[fx.Node]:
    """Nodes that depend on an input."""
    result: set[fx.Node] = set()
    for node in found.dims:
        if node.op == "placeholder" or any(n in result for n in node.all_input_nodes):
            result.add(node)
    return result
