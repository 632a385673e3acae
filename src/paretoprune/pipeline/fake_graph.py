"""The graph of a network with fake quantizers exactly where a target's int8 file quantizes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, fx, nn

from paretoprune import graph as graphs
from paretoprune.core.copies import duplicate
from paretoprune.core.data import split_batch
from paretoprune.core.errors import PlanError, TargetError, UsageError
from paretoprune.core.graph import Example, Program
from paretoprune.core.grid import Layout
from paretoprune.core.protocols import Target
from paretoprune.graph import TracedGraph
from paretoprune.graph.program import GraphProgram
from paretoprune.quantize import BinaryWeight, FakeActivation, FakeBias, FakeWeight, matched, with_fakes
from paretoprune.targets.feeds import feed_of
from paretoprune.targets.qdq import biases_of, layout_of, tensors_in
from paretoprune.targets.weights import parameter_of

BINARY = "binary"
"""Among `bits`: signs times one scale per output channel. It trains; a file stores it as 8 bits."""

MATCHED_SAMPLES = 3


@dataclass(frozen=True)
class FakeGraph:
    """`module`: trains, exports nothing itself. `file`: the int8 file of the network as it was, to be written anew.

    `missed`: tensors that the file quantizes and the graph has nowhere.
    """

    module: fx.GraphModule
    file: ModelProto
    layout: Layout
    missed: tuple[str, ...]

    @property
    def weights(self) -> Mapping[str, FakeWeight]:
        """By parameter."""
        calls = [n for n in self.module.graph.nodes if n.op == "call_module" and n.args[0].op == "get_attr"]
        found = {str(n.args[0].target): self.module.get_submodule(str(n.target)) for n in calls}
        return {name: fake for name, fake in found.items() if isinstance(fake, FakeWeight)}

    @property
    def activations(self) -> tuple[FakeActivation, ...]:
        return tuple(part for part in self.module.modules() if isinstance(part, FakeActivation))


def fake_graph(
    traced: TracedGraph, target: Target, calibration: Sequence[Example], bits: Mapping[str, str] | None = None
) -> FakeGraph:
    """Export, quantize, read where, and put fake quantizers there. Batch norms are folded, as in the file.

    Raises UsageError for a target whose files are not read here, and whatever its export raises.
    """
    module = graphs.fold_norms(traced.program.module)
    binary, rest = _binary(graphs.tensors_of(module), bits or {})
    with tempfile.TemporaryDirectory(prefix="paretoprune-") as folder:
        shown = _as_signs(module, binary) if binary else module
        fp32, int8 = _files(shown, target, traced.example, calibration, rest, Path(folder))
        layout, file, few = layout_of(int8), onnx.load(str(int8)), _first(calibration[0])
        values = tensors_in(fp32, layout.activations, feed_of(few))
        corrected = biases_of(int8)
    nodes = matched(shown, few, values)
    _take_biases(module, corrected)  # only now: matched by what the fp32 file computes
    fakes = _fakes(layout, nodes, graphs.tensors_of(module), binary, target.name)
    return FakeGraph(fakes.within(module), file, layout, fakes.missed)


@dataclass(frozen=True)
class Fakes:
    """Quantizers by node, by weight, and by bias with the name of its weight."""

    activations: Mapping[str, FakeActivation]
    weights: Mapping[str, FakeWeight]
    biases: Mapping[str, tuple[FakeBias, str]]
    missed: tuple[str, ...]

    def within(self, module: fx.GraphModule) -> fx.GraphModule:
        """A copy of `module`, or of what was cut out of it, that rounds where it still has such nodes and weights."""
        return with_fakes(module, self.activations, self.weights, self.biases)

    def rounding(self, program: Program) -> GraphProgram:
        """A program that rounds: its parameters are on the grid already. Batch norms need not be folded: they scale
        whole channels, as the grids of weights do."""
        module = with_fakes(program.module, self.activations, {})  # type: ignore[arg-type]
        with torch.no_grad():
            for name, tensor in graphs.tensors_of(module).items():
                if name in self.weights:
                    tensor.copy_(self.weights[name](tensor))
        return GraphProgram(module, tuple(program.contractions), tuple(program.batch_norms))


def fakes_for(traced: TracedGraph, target: Target, calibration: Sequence[Example]) -> Fakes:
    """Quantizers for the graph as it is, where the target's int8 file of it quantizes. Raises as `fake_graph` does."""
    module = traced.program.module
    with tempfile.TemporaryDirectory(prefix="paretoprune-") as folder:
        fp32, int8 = _files(module, target, traced.example, calibration, {}, Path(folder))
        layout, few = layout_of(int8), _first(calibration[0])
        values = tensors_in(fp32, layout.activations, feed_of(few))
    return _fakes(layout, matched(module, few, values), graphs.tensors_of(module), frozenset(), target.name)


def _files(
    module: nn.Module,
    target: Target,
    example: Example,
    calibration: Sequence[Example],
    bits: Mapping[str, str],
    folder: Path,
) -> tuple[Path, Path]:
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    quantized = getattr(target, "quantized", None)
    if quantized is None:
        raise UsageError(
            f"target {target.name}: where its files quantize is not known here; use 'onnxruntime' or 'openvino'"
        )
    target.export(module, example, fp32)
    quantized(fp32, int8, (feed_of(e) for e in calibration), "int8", bits)
    return fp32, int8


def _fakes(
    layout: Layout, nodes: Mapping[str, str], held: Mapping[str, Tensor], binary: frozenset[str], target: str
) -> Fakes:
    """`nodes`: by tensor of the file."""
    if not nodes:
        raise TargetError(f"nothing that the int8 file of {target} quantizes was found in the network's graph")
    of = {layout.activations[tensor].name: FakeActivation(layout.activations[tensor]) for tensor in nodes}
    weights = {
        name: (BinaryWeight if name in binary else FakeWeight)(grid)
        for name, grid in layout.weights.items()
        if name in held
    }
    biases = {n: (FakeBias(of[x], weights[w]), w) for n, (x, w) in layout.biases.items() if x in of and w in weights}
    missed = [t for t in layout.activations if t not in nodes] + [w for w in layout.weights if w not in held]
    return Fakes({node: of[layout.activations[t].name] for t, node in nodes.items()}, weights, biases, tuple(missed))


def _binary(tensors: Mapping[str, Tensor], bits: Mapping[str, str]) -> tuple[frozenset[str], dict[str, str]]:
    """(weights that become signs, the other bits)."""
    names = [n for n, t in tensors.items() if t.ndim >= 2]
    patterns = [p for p, wanted in bits.items() if wanted == BINARY]
    for pattern in patterns:
        if not any(fnmatchcase(n, pattern) for n in names):
            raise PlanError(f"bits: {pattern!r} is to be binary, and fits no weight; there are {', '.join(names[:8])}")
    first = {n: next((w for p, w in bits.items() if fnmatchcase(n, p)), "") for n in names}
    return frozenset(n for n, w in first.items() if w == BINARY), {p: w for p, w in bits.items() if w != BINARY}


def _as_signs(module: fx.GraphModule, binary: frozenset[str]) -> fx.GraphModule:
    """The ranges of activations are those behind signs."""
    copy = duplicate(module)
    with torch.no_grad():
        for name, tensor in graphs.tensors_of(copy).items():
            if name in binary:
                mean = tensor.abs().mean(dim=tuple(range(1, tensor.ndim)), keepdim=True)
                tensor.copy_(torch.where(tensor >= 0, mean, -mean))
    return copy


def _take_biases(module: fx.GraphModule, biases: Mapping[str, Any]) -> None:
    held = graphs.tensors_of(module)
    with torch.no_grad():
        for name, value in biases.items():
            ours = held.get(parameter_of(name))
            if ours is not None and ours.shape == value.shape and parameter_of(name).endswith("bias"):
                ours.copy_(torch.from_numpy(value.copy()))


def _first(example: Example) -> Example:
    from torch.utils import _pytree as pytree

    def few(value: Any) -> Any:
        return value[:MATCHED_SAMPLES] if isinstance(value, Tensor) and value.ndim else value

    args, kwargs = pytree.tree_map(few, (example.args, dict(example.kwargs)))
    return Example(args, kwargs)


def inputs_of(batches: Sequence[Any]) -> list[Example]:
    return [split_batch(batch)[0] for batch in batches]
