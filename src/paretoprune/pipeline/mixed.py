"""Mixed precision: which layers of an int8 file are worth leaving in fp32.

The loss is measured at the network's output, by fake quantization: a file per layer would take minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from paretoprune import graph as graphs
from paretoprune.core.data import batch_size
from paretoprune.core.errors import TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.outputs import main_output
from paretoprune.core.protocols import Target
from paretoprune.graph import TracedGraph
from paretoprune.graph.program import GraphProgram
from paretoprune.pipeline.fake_graph import FakeGraph, fake_graph
from paretoprune.pipeline.outputs import Outputs
from paretoprune.quantize import FakeActivation, FakeBias, FakeWeight

REPAIRED = 0.5
"""Share of the loss by quantization that layers in fp32 are to take back."""
SAMPLES = 64
MAX_SHARE = 0.5
"""Of the multiply-accumulates that may be left in fp32: beyond that the file is no int8 file."""


@dataclass(frozen=True)
class Sensitivity:
    """`loss`: divergence of the output when this layer alone is int8, its weight and what enters and leaves it. `macs`:
    its share."""

    weight: str
    loss: float
    macs: float


def mixed_bits(
    target: Target, module: nn.Module, example: Example, calibration: Sequence[Example], repaired: float = REPAIRED
) -> dict[str, str]:
    """{weight: "fp32"} for the layers that repair most per multiply-accumulate, until `repaired` of the loss is.

    Loss: KL divergence from the fp32 network's classes on calibration inputs, or the relative squared error. None
    where int8 loses nothing. Raises TargetError without calibration inputs, UsageError for a share outside 0 to 1.
    """
    if not 0 < repaired <= 1:
        raise UsageError(f"repaired={repaired}: give a share above 0, at most 1")
    if not calibration:
        raise TargetError("mixed needs calibration batches to learn the ranges; give calibration=")
    traced = graphs.trace(module, example)
    fake = fake_graph(traced, target, calibration)
    layers = Layers(traced, fake, calibration)
    return {s.weight: "fp32" for s in layers.chosen(repaired)}


class Layers:
    """The layers of a fake-quantized network, switched one by one."""

    def __init__(self, traced: TracedGraph, fake: FakeGraph, calibration: Sequence[Example]):
        self.fake, self.program = fake, GraphProgram(fake.module, (), ())
        self.touching = _touching(fake.module, fake.weights)
        self.macs = _shares(traced)
        inputs = _few(calibration)
        exact = tuple(main_output(traced.program.observe(i, {})) for i in inputs)
        self.outputs = Outputs(graphs.tensors_of(traced.program.module), tuple(inputs), exact)

    def loss(self, exact: Collection[str] = (), alone: str | None = None) -> float:
        """With the layers `exact` in fp32, or with all but `alone`."""
        with self._switched(set(exact), alone):
            return self.outputs.divergence(self.program)

    def sensitivities(self) -> list[Sensitivity]:
        """In the order of the graph."""
        return [Sensitivity(w, self.loss(alone=w), self.macs.get(w, 0.0)) for w in self.fake.weights]

    def chosen(self, repaired: float) -> list[Sensitivity]:
        """Most loss per multiply-accumulate first."""
        goal = (1 - repaired) * self.loss()
        taken: list[Sensitivity] = []
        for layer in sorted(self.sensitivities(), key=lambda s: -s.loss / (s.macs + 1e-6)):
            if self.loss([s.weight for s in taken]) <= goal:
                break
            if layer.loss > 0 and sum(s.macs for s in (*taken, layer)) <= MAX_SHARE:
                taken.append(layer)
        return taken

    @contextmanager
    def _switched(self, exact: set[str], alone: str | None) -> Iterator[None]:
        weights, activations = self.fake.weights, self.fake.activations
        try:
            for name, fake in weights.items():
                fake.on = name not in exact if alone is None else name == alone
            for activation in activations:
                near = self.touching.get(id(activation), _Touching(frozenset(), True))
                if alone is None:
                    activation.on = near.others or not near.weights <= exact
                else:
                    activation.on = alone in near.weights
            yield
        finally:
            for fake in weights.values():
                fake.on = True
            for activation in activations:
                activation.on = True


@dataclass(frozen=True)
class _Touching:
    """Of one activation: the weights whose layers give or read it, and whether other operators do."""

    weights: frozenset[str]
    others: bool


def _touching(module: fx.GraphModule, weights: Mapping[str, FakeWeight]) -> dict[int, _Touching]:
    """By activation quantizer. A file quantizes a tensor that any operator in 8 bits gives or reads."""
    names = {id(fake): name for name, fake in weights.items()}
    layers = {
        reader: names[id(part)]
        for node in module.graph.nodes
        if id(part := _module_at(module, node)) in names
        for reader in node.users
        if not isinstance(_module_at(module, reader), FakeBias)
    }
    found: dict[int, _Touching] = {}
    for node in module.graph.nodes:
        part = _module_at(module, node)
        if isinstance(part, FakeActivation):
            back, joined = _reached(node.args[0], layers, module, lambda n: [n.args[0]])
            ahead, forked = zip(
                *(_reached(u, layers, module, lambda n: list(n.users)) for u in node.users), strict=True
            )
            known = found.get(id(part), _Touching(frozenset(), False))
            every = known.weights.union(back, *ahead)
            found[id(part)] = _Touching(every, known.others or joined or any(forked))
    return found


def _reached(
    node: Any, layers: Mapping[fx.Node, str], module: fx.GraphModule, step: Callable[[fx.Node], list[Any]]
) -> tuple[set[str], bool]:
    """(layers at the ends of the ways from `node`, whether one ends at an operator that takes two activations)."""
    weights, others, ahead = set[str](), False, [node]
    while ahead:
        here = ahead.pop()
        if not isinstance(here, fx.Node) or here.op in ("placeholder", "output"):
            continue
        if here in layers:
            weights.add(layers[here])
        elif isinstance(_module_at(module, here), FakeActivation):
            continue
        elif len([n for n in here.all_input_nodes if n.op != "get_attr"]) > 1:
            others = True
        else:
            ahead += step(here)
    return weights, others


def _module_at(module: fx.GraphModule, node: fx.Node) -> Any:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _shares(traced: TracedGraph) -> dict[str, float]:
    """Share of the multiply-accumulates by weight."""
    macs = traced.macs_by_weight()
    total = sum(macs.values())
    return {name: count / total for name, count in macs.items()} if total else {}


def _few(calibration: Sequence[Example]) -> list[Example]:
    few: list[Example] = []
    for example in calibration:
        few.append(example)
        if sum(batch_size(e) for e in few) >= SAMPLES:
            break
    return few
