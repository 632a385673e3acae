"""What a graph computes from constants alone, computed before it is exported."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from paretoprune.core.graph import Example, device_of, placeholders

PREFIX = "_constant_"


_FILLS = ("aten.new_zeros.default", "aten.new_ones.default", "aten.new_full.default")
"""They take the type and the device of another tensor, and nothing else of it."""


def with_constants(module: nn.Module, inputs: Example) -> nn.Module:
    """`module`, or a copy of a captured graph in which values that depend on no input are buffers.

    The exporter loses what is written in place into a slice of a constant, such as the mask of shifted windows. What
    depends on parameters is computed only where such writing is left.
    """
    if not isinstance(module, fx.GraphModule):
        return module
    fills = {n for n in module.graph.nodes if str(n.target) in _FILLS and not _depends(n.args[1:])}
    constant = _constant(module, fills, parameters=False)
    if any(n not in constant and _writes(n) for n in module.graph.nodes):
        constant = _constant(module, fills, parameters=True)  # a slice of a bias may be set to zero
    if any(n not in constant and _writes(n) and constant & set(n.all_input_nodes) for n in module.graph.nodes):
        return module  # what is written depends on the input, and so does what is read afterwards
    return _Folding(module, constant, _filled(module, fills, inputs)).result()


def _depends(arguments: Any) -> bool:
    found: list[fx.Node] = []
    fx.map_arg(arguments, found.append)
    return bool(found)


def _filled(module: fx.GraphModule, fills: set[fx.Node], inputs: Example) -> dict[fx.Node, torch.Tensor]:
    """What fills give, before anything is written into it."""
    found: dict[fx.Node, torch.Tensor] = {}

    class Watching(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in fills:
                found[n] = value.clone()
            return value

    if fills:
        with torch.no_grad():
            Watching(module).run(*placeholders(module, inputs))
    return found


def _constant(module: fx.GraphModule, fills: set[fx.Node], *, parameters: bool) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = _attribute(module, str(node.target))
            fixed = isinstance(value, torch.Tensor) and (parameters or not isinstance(value, nn.Parameter))
        else:
            alone = _computed(node) and found.issuperset(node.all_input_nodes)
            fixed = alone or node in fills or node.target is device_of
        if fixed:
            found.add(node)
    return found


def _computed(node: fx.Node) -> bool:
    """An operator that gives the same for the same."""
    if isinstance(node.target, torch._ops.OpOverload):
        return torch.Tag.nondeterministic_seeded not in node.target.tags
    return node.target is operator.getitem or node.op == "call_method"


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


class _Folding:
    """Runs the constant part in the order of the graph, and copies the rest, which reads what is there by then."""

    def __init__(self, module: fx.GraphModule, constant: set[fx.Node], values: dict[fx.Node, torch.Tensor]) -> None:
        self._module, self._constant = module, constant
        self._values: dict[fx.Node, Any] = dict(values)
        self._graph = fx.Graph()
        self._mapping: dict[fx.Node, fx.Node] = {}
        self._buffers: dict[str, torch.Tensor] = {}
        self._read: dict[tuple[fx.Node, int], fx.Node] = {}

    def result(self) -> fx.GraphModule:
        for node in self._module.graph.nodes:
            if node in self._constant:
                if node not in self._values:
                    self._values[node] = self._value(node)
            else:
                self._mapping[node] = self._graph.node_copy(node, self._operand)
        self._graph._codegen = self._module.graph._codegen
        root = {n: _attribute(self._module, n) for n in self._names()} | self._buffers
        folded = fx.GraphModule(root, self._graph, class_name=type(self._module).__name__)
        folded.training = self._module.training
        return folded

    def _names(self) -> list[str]:
        nodes = [n for n in self._graph.nodes if n.op in ("get_attr", "call_module")]
        return [str(n.target) for n in nodes if str(n.target) not in self._buffers]

    def _value(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return _attribute(self._module, str(node.target)).detach().clone()
        if node.target is device_of:
            return _attribute(self._module, str(node.all_input_nodes[0].target)).device
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._values.__getitem__)
        with torch.no_grad():
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _operand(self, node: fx.Node) -> Any:
        if node not in self._constant:
            return self._mapping[node]
        value = self._values[node]
        if not isinstance(value, torch.Tensor):
            return value
        key = (node, value._version)
        if key not in self._read:
            name = str(node.target)
            if node.op != "get_attr" or value._version:
                name = f"{PREFIX}{len(self._buffers)}"
                self._buffers[name] = value.clone()
            self._read[key] = self._graph.get_attr(name)
        return self._read[key]


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module
