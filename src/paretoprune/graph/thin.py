"""Two thin layers in the place of one, in a program that may have been cut before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import torch
from torch import Tensor, fx, nn

from paretoprune.core.graph import Contraction
from paretoprune.core.layers import LayerSpec
from paretoprune.graph.low_rank import thin_layers
from paretoprune.graph.op import bind
from paretoprune.graph.program import GraphProgram, runnable
from paretoprune.graph.rules.contraction import patches
from paretoprune.graph.surgery import Cut, attach
from paretoprune.graph.traced import TracedGraph, tensors_of

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""By weight name: (rank, inputs × taps of the first layer) and (outputs, rank × taps of the second)."""


@dataclass(frozen=True)
class ThinNames:
    """ThinNames of the parameters of the two layers in the place of `weight` and `bias`.

    A layer "fc" with "fc.weight" and "fc.bias" becomes "fc.0" and "fc.1", as `nn.Sequential` names them.
    """

    weight: str
    first: str
    second: str
    bias: str | None = None
    new_bias: str | None = None
    spatial: bool = False

    @property
    def path(self) -> str:
        """Where the layer stands, if its names are those of an `nn.Sequential`; empty if not."""
        owner = self.weight.rpartition(".")[0]
        return owner if self.first == f"{owner}.0.weight" else ""


def names_of(cut: Cut, contraction: Contraction, spatial: bool = False) -> ThinNames:
    """A bias that another layer or another name shares keeps its name."""
    held = tensors_of(cut.program.module)
    weight, bias = contraction.weight, contraction.bias
    owner, _, leaf = weight.rpartition(".")
    if not owner or leaf != "weight" or any(n.startswith((f"{owner}.0.", f"{owner}.1.")) for n in held):
        return ThinNames(weight, f"{weight}_0", f"{weight}_1", bias, bias, spatial)
    new = bias
    if bias == f"{owner}.bias" and _alone(cut.program.module, bias, held):
        new = f"{owner}.1.bias"
    return ThinNames(weight, f"{owner}.0.weight", f"{owner}.1.weight", bias, new, spatial)


def _alone(module: fx.GraphModule, name: str, held: Mapping[str, Tensor]) -> bool:
    twins = [n for n, t in held.items() if t is held[name]]
    return len(twins) == 1 and sum(len(n.users) for n in module.graph.nodes if str(n.target) == name) == 1


def thinned(traced: TracedGraph, cut: Cut, factors: Factors, names: Iterable[ThinNames]) -> Cut:
    """The program with the factors in the place of these weights; the cut is not changed, and shares its tensors.

    `kept` stays by the names of the original network.
    """
    module = cut.program.module
    graph, nodes = _copied(module)
    held, by_weight = tensors_of(module), {n.weight: n for n in names}
    new: dict[str, nn.Parameter] = {}
    renamed: dict[str, str] = {}
    contractions: list[Contraction] = []
    for contraction in cut.program.contractions:
        if contraction.weight not in by_weight:
            contractions.append(contraction)
            continue
        name, old = by_weight[contraction.weight], held[contraction.weight]
        kernels = kernels_of(old.shape[2:], name.spatial)
        first, second = (_parameter(*pair, old) for pair in zip(factors[name.weight], kernels, strict=True))
        new |= {name.first: first, name.second: second}
        if name.bias and name.new_bias:
            renamed[name.bias] = name.new_bias
        node = nodes[contraction.node]
        _split(graph, node, name)
        contractions += _both(contraction, name, traced.low_rank.layers[name.weight].spec)
    for node in graph.nodes:
        if node.op == "get_attr":
            node.target = renamed.get(str(node.target), node.target)
    back = {v: k for k, v in renamed.items()}
    root = nn.Module()
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            path = str(node.target)
            attach(root, path, new[path] if path in new else _held(module, back.get(path, path)))
    program = GraphProgram(runnable(fx.GraphModule(root, graph)), tuple(contractions), cut.program.batch_norms)
    return replace(cut, program=program)


def _copied(module: fx.GraphModule) -> tuple[fx.Graph, dict[str, fx.Node]]:
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, mapping))
    graph._codegen = module.graph._codegen
    for old, node in mapping.items():
        node.name, node.meta = old.name, dict(old.meta)
    return graph, {node.name: node for node in mapping.values()}


def kernels_of(kernel: Sequence[int], spatial: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernels of the two layers in the place of one; none for a linear layer."""
    ones = (1,) * len(kernel)
    return ((kernel[0], 1), (1, kernel[1])) if spatial else (tuple(kernel), ones)


def product(first: Tensor, second: Tensor) -> Tensor:
    """The weight (outputs, inputs, kernel) that two layers stand for, one after the other."""
    if second[0, 0].numel() == 1:
        return (second.flatten(1) @ first.flatten(1)).reshape(len(second), *first.shape[1:])
    return torch.einsum("orx,riy->oiyx", second[:, :, 0, :], first[:, :, :, 0])


def _parameter(matrix: Tensor, kernel: Sequence[int], old: Tensor) -> nn.Parameter:
    """A factor in the shape of a layer's weight."""
    shape = (len(matrix), matrix.shape[1] // prod(kernel), *kernel)
    return nn.Parameter(matrix.to(old).reshape(shape).contiguous(), requires_grad=old.requires_grad)


def _split(graph: fx.Graph, node: fx.Node, name: ThinNames) -> None:
    """Turn `node` into the second layer, fed by a first one; every other reader of the weight's name reads the first.

    (The graph asks a parameter on which device it is.)
    """
    args = bind(node)
    first, second = {**args, "bias": None}, dict(args)
    for key, rest in (("stride", 1), ("padding", 0), ("dilation", 1)):
        if name.spatial and not isinstance(args[key], str):  # "same" and "valid" are so along each dim alone
            along, across = (args[key][0], args[key][-1])
            first[key], second[key] = [along, rest], [rest, across]
        elif not name.spatial and key in args:
            second[key] = [rest]
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    with graph.inserting_before(node):
        thin = graph.call_function(node.target, tuple(first[a.name] for a in schema))  # type: ignore[arg-type]
        weight = graph.get_attr(name.second)
    thin.name, thin.meta = f"{node.name}_thin", dict(node.meta)
    for read in [n for n in graph.nodes if n.op == "get_attr" and str(n.target) == name.weight]:
        read.target = name.first
    second |= {"input": thin, "weight": weight}
    node.target = node.target if name.spatial else _BEHIND.get(str(node.target).split(".")[1], node.target)
    node.args, node.kwargs = tuple(second[a.name] for a in schema), {}


_BEHIND = {
    "conv1d": torch.ops.aten.conv1d.default,
    "conv2d": torch.ops.aten.conv2d.default,
    "conv3d": torch.ops.aten.conv3d.default,
}


def _both(contraction: Contraction, name: ThinNames, spec: LayerSpec) -> tuple[Contraction, Contraction]:
    specs = thin_layers(spec, 1, name.spatial)
    whole = replace(contraction, node=f"{contraction.node}_thin", weight=name.first, bias=None, batch_norm=None)
    second = replace(contraction, weight=name.second, bias=name.new_bias)
    if spec.kind == "linear":
        return whole, second
    first_rows, second_rows = (partial(patches, s) for s in specs)
    return replace(whole, rows=first_rows), replace(second, rows=second_rows)


def _held(module: nn.Module, name: str) -> object:
    value: object = module
    for part in name.split("."):
        value = getattr(value, part)
    return value
