"""Submodules that cannot be captured: one operator each while the rest is exported, then the user's own code again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from paretoprune.graph.predict import Prediction

_LIBRARY = torch.library.Library("paretoprune", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("opaque(str key, Tensor[] tensors, SymInt[] sizes) -> Tensor[]")  # type: ignore[no-untyped-call]
_OPAQUE = torch.ops.paretoprune.opaque.default
_PREDICTIONS: dict[str, Prediction] = {}
"""Of the calls that stand in the capture that is under way."""


def _shapes(key: str, tensors: Sequence[torch.Tensor], sizes: Sequence[int]) -> list[torch.Tensor]:
    return _PREDICTIONS[key].made(tensors, sizes)


torch.library.register_fake("paretoprune::opaque", _shapes, lib=_LIBRARY)


@dataclass(frozen=True)
class Unit:
    """A submodule that runs as it is. `calls`: what each of its calls in one run of the network takes and gives."""

    path: str
    why: str
    calls: tuple[Prediction, ...]


def leaf(value: Any, number: int) -> Any:
    """One tensor of what an opaque submodule gives."""
    return [v for v in pytree.tree_leaves(value) if isinstance(v, torch.Tensor)][number]


# -- while the rest is exported --------------------------------------------------------------------------------------


@contextmanager
def hidden(model: nn.Module, units: Mapping[str, Unit]) -> Iterator[None]:
    """Inside the block each unit is one operator whose output shapes are predicted."""
    try:
        with ExitStack() as stack:
            for unit in units.values():
                _PREDICTIONS.update({f"{unit.path}#{i}": call for i, call in enumerate(unit.calls)})
                stack.enter_context(_stubbed(model, unit))
            yield
    finally:
        _PREDICTIONS.clear()


@contextmanager
def _stubbed(model: nn.Module, unit: Unit) -> Iterator[None]:
    module, stub = model.get_submodule(unit.path), _Stub(unit)
    if isinstance(module, torch.jit.ScriptModule):  # its forward cannot be replaced
        with replaced(model, module, stub):
            yield
        return
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = stub.forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before


@contextmanager
def replaced(model: nn.Module, module: nn.Module, by: nn.Module) -> Iterator[None]:
    """Inside the block another module stands in every place of `module`."""
    owners = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    places = [(o, n) for o in owners for n, m in o._modules.items() if m is module]
    for owner, name in places:
        owner._modules[name] = by
    try:
        yield
    finally:
        for owner, name in places:
            owner._modules[name] = module


class _Stub(nn.Module):
    """Calls come in the order of the recorded ones, run after run."""

    def __init__(self, unit: Unit) -> None:
        super().__init__()
        self._unit, self._count = unit, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        number = self._count % len(self._unit.calls)
        self._count += 1
        call = self._unit.calls[number]
        tensors, sizes = call.inputs.taken(args, kwargs)
        return call.given(_OPAQUE(f"{self._unit.path}#{number}", tensors, sizes))


# -- in the captured graph -------------------------------------------------------------------------------------------


def reveal(module: fx.GraphModule, model: nn.Module, units: Mapping[str, Unit]) -> None:
    """Put calls of the user's own submodules where their operators stand."""
    graph = module.graph
    for unit in units.values():
        for node in list(graph.nodes):
            if node.op == "get_attr" and str(node.target).startswith(f"{unit.path}.") and not node.users:
                graph.erase_node(node)
        module.add_submodule(unit.path, model.get_submodule(unit.path))
    for node in list(graph.nodes):
        if node.target is _OPAQUE:
            path, _, number = str(node.args[0]).rpartition("#")
            _call(graph, node, units[path], int(number))
    if left := [n.name for n in graph.nodes if n.target is _OPAQUE]:
        raise RuntimeError(f"opaque calls {left} stand in a region that cannot be taken apart")


def _call(graph: fx.Graph, node: fx.Node, unit: Unit, number: int) -> None:
    call = unit.calls[number]
    args, kwargs = call.inputs.arguments(node.args[1], node.args[2])
    with graph.inserting_before(node):
        new = graph.call_module(unit.path, args, kwargs)
        new.meta = {**node.meta, "opaque": unit.why}
        new.meta["val"] = call.values(node.meta["val"])
        for user in list(node.users):
            user.replace_all_uses_with(_output(graph, new, user, call))
            graph.erase_node(user)
    graph.erase_node(node)


def _output(graph: fx.Graph, call: fx.Node, getitem: fx.Node, prediction: Prediction) -> fx.Node:
    """What stands for one tensor of the operator: the module's own result, or one leaf of it."""
    if prediction.single or prediction.whole:
        if prediction.whole and any(u.op != "output" for u in getitem.users):
            raise RuntimeError(f"the result of '{call.target}', whose shapes depend on the data, is worked on further")
        return call
    new = graph.call_function(leaf, (call, getitem.args[1]))
    new.meta = dict(getitem.meta)
    return new


def opaque_calls(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_module" and "opaque" in n.meta]


def opaque_paths(module: fx.GraphModule) -> list[str]:
    return list(dict.fromkeys(str(n.target) for n in module.graph.nodes if n.op == "call_module"))


def opaque_tensors(module: fx.GraphModule) -> dict[str, str]:
    """Every name of a parameter or buffer that an opaque submodule holds -> why it stays as it is."""
    held: dict[int, str] = {}
    for path in opaque_paths(module):
        part = module.get_submodule(path)
        for tensor in (*part.parameters(), *part.buffers()):
            held.setdefault(id(tensor), f"it belongs to '{path}', which is run as it is")
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {n: held[id(t)] for n, t in named if id(t) in held}


def carried(module: fx.GraphModule, path: str, tensor: Callable[[str], torch.Tensor]) -> nn.Module:
    """A copy of an opaque submodule over other tensors: `tensor` gives them by name."""
    part = module.get_submodule(path)
    parameters = dict(part.named_parameters(remove_duplicate=False))
    named = {**parameters, **dict(part.named_buffers(remove_duplicate=False))}
    memo: dict[int, Any] = {id(t): tensor(f"{path}.{n}") for n, t in named.items()}
    made = copy.deepcopy(part, dict(memo))
    theirs = {**dict(made.named_parameters(remove_duplicate=False)), **dict(made.named_buffers(remove_duplicate=False))}
    for name, old in named.items():
        given = memo[id(old)]
        if theirs[name] is not given and given.device == theirs[name].device:  # TorchScript copies its own tensors
            theirs[name].data = given.detach()
    return made.train(part.training)


def notes_of(model: nn.Module, units: Mapping[str, Unit]) -> tuple[str, ...]:
    return tuple(
        f"'{u.path}' ({type(model.get_submodule(u.path)).__name__}) cannot be captured: {u.why}; it is run as it is, "
        "what it touches stays whole, and its multiply-accumulates are not counted"
        for u in units.values()
    )
