"""A graph with fake quantizers in it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from paretoprune.core.copies import duplicate
from paretoprune.quantize.fakes import FakeActivation, FakeBias, FakeWeight

FAKES = "fakes"


def with_fakes(
    module: fx.GraphModule,
    activations: Mapping[str, FakeActivation],
    weights: Mapping[str, FakeWeight],
    biases: Mapping[str, tuple[FakeBias, str]] | None = None,
) -> fx.GraphModule:
    """A copy in which everybody reads what `activations` (by node) and `weights` (by parameter) make of a tensor.

    `biases`: by parameter, with the name of the weight. One quantizer may stand at several nodes. Names of nodes and
    parameters stay.
    """
    copy = duplicate(module)
    held, names = nn.Module(), dict[int, str]()
    copy.add_module(FAKES, held)
    nodes = {n: activations[n.name] for n in copy.graph.nodes if n.name in activations}
    read = {n: weights[str(n.target)] for n in copy.graph.nodes if n.op == "get_attr" and str(n.target) in weights}

    def held_as(fake: nn.Module) -> str:
        name = names.setdefault(id(fake), f"f{len(names)}")
        if not hasattr(held, name):
            held.add_module(name, fake)
        return f"{FAKES}.{name}"

    stored = {str(n.target): n for n in copy.graph.nodes if n.op == "get_attr"}
    for node, fake in [*nodes.items(), *read.items()]:
        _behind(copy.graph, node, held_as(fake))
    for name, (bias, weight) in (biases or {}).items():
        if name in stored and weight in stored:
            _behind(copy.graph, stored[name], held_as(bias), stored[weight])
    copy.graph.lint()
    copy.recompile()
    return copy


def _behind(graph: fx.Graph, node: fx.Node, target: str, *more: fx.Node) -> None:
    last = node
    if more:  # all that is read must stand before
        order = {n: i for i, n in enumerate(graph.nodes)}
        last = max((node, *more), key=lambda n: order[n])
    if node.op == "placeholder":  # they stand together at the beginning
        last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    readers = list(node.users)
    with graph.inserting_after(last):
        fake = graph.call_module(target, (node, *more))
    fake.meta = dict(node.meta)
    for reader in readers:
        reader.replace_input_with(node, fake)


def fakes_of(module: nn.Module) -> list[FakeActivation | FakeWeight]:
    """Every quantizer of the graph, once."""
    return [part for part in module.modules() if isinstance(part, (FakeActivation, FakeWeight))]
