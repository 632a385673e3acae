"""A network that runs as a graph: the module that trains and exports, and a way to look inside while it runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from paretoprune.core.errors import PruneError
from paretoprune.core.graph import BatchNorm, Contraction, Example, Walk, device_of, placeholders
from paretoprune.graph.rules import RULES
from paretoprune.graph.rules.shape import size_methods

Watcher = Callable[[torch.Tensor], None]


def runnable(module: fx.GraphModule) -> fx.GraphModule:
    """A graph whose train flags follow `train()` and `eval()`, whose constants are made on the device to which it was
    moved, and whose sizes stay dynamic when traced.

    Node names and parameter names stay. A flag that is fixed to True (statistics of the batch by choice) stays.
    """
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, mapping))
    for old, new in mapping.items():
        new.name, new.meta = old.name, dict(old.meta)
    graph._codegen = module.graph._codegen
    flagged = [(n, at) for n in graph.nodes if (at := _mode_argument(n)) is not None and n.args[at] is False]
    if flagged:
        first = next(n for n in graph.nodes if n.op != "placeholder")
        with graph.inserting_before(first):
            mode = graph.create_node("get_attr", "training", name="training")
        for node, at in flagged:
            node.args = (*node.args[:at], mode, *node.args[at + 1 :])
    size_methods(graph)
    _follow_device(graph, module)
    module.training = False
    return fx.GraphModule(module, graph, class_name="PrunedGraph").eval()


def _follow_device(graph: fx.Graph, module: fx.GraphModule) -> None:
    """What is made on the device of the parameters is so wherever they are."""
    parameters = dict(module.named_parameters())
    if not parameters:
        return
    smallest = min(parameters, key=lambda n: parameters[n].numel())
    device = parameters[smallest].device
    fixed = [n for n in graph.nodes if n.op not in ("placeholder", "output") and device in _devices(n)]
    if not fixed:
        return
    with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
        here = graph.call_function(device_of, (graph.get_attr(smallest),))
    for node in fixed:
        node.args, node.kwargs = fx.node.map_aggregate(
            (node.args, node.kwargs), lambda a: here if isinstance(a, torch.device) and a == device else a
        )


def _devices(node: fx.Node) -> list[torch.device]:
    found: list[torch.device] = []
    fx.node.map_aggregate((node.args, node.kwargs), lambda a: found.append(a) if isinstance(a, torch.device) else a)
    return found


def _mode_argument(node: fx.Node) -> int | None:
    """Index of the argument that is True in training alone."""
    rule = RULES.get(str(node.target)) if node.op == "call_function" else None
    return None if rule is None or rule.mode is None or len(node.args) <= rule.mode else rule.mode


@dataclass(frozen=True)
class GraphProgram:
    """core.graph.Program over an fx graph."""

    module: fx.GraphModule
    contractions: tuple[Contraction, ...]
    batch_norms: tuple[BatchNorm, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(n.name for n in self.module.graph.nodes)

    def observe(
        self,
        inputs: Example,
        watch: Mapping[str, Watcher],
        *,
        batch_statistics: bool = False,
    ) -> Any:
        """Run in eval mode without gradients; see core.graph.Program."""
        was = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                return _Observer(self.module, watch, batch_statistics).run(*placeholders(self.module, inputs))
        finally:
            self.module.train(was)

    def walk(self, inputs: Example) -> Walk:
        """Train flags stand as they are: put the module into eval mode first."""
        return _Walk(self.module, inputs)


class _Walk(fx.Interpreter):
    """core.graph.Walk: the interpreter's loop, which can be left and entered again."""

    def __init__(self, module: fx.GraphModule, inputs: Example):
        super().__init__(module)
        self.extra_traceback = False
        self.args_iter = iter(placeholders(module, inputs))
        self._ahead = deque(module.graph.nodes)
        self._readers = {n: len(n.users) for n in module.graph.nodes}

    def entering(self, node: str) -> torch.Tensor:
        with torch.no_grad():
            while self._ahead and self._ahead[0].name != node:
                self._step(self._ahead.popleft())
        if not self._ahead:
            raise PruneError(f"the walk has passed '{node}', or the graph has no such node")
        given: Any = self._ahead[0].args[0]
        entering: torch.Tensor = self.env[given]
        return entering

    def _step(self, node: fx.Node) -> None:
        self.env[node] = self.run_node(node)
        for source in node.all_input_nodes:
            self._readers[source] -= 1
            if not self._readers[source]:
                del self.env[source]

    def held(self) -> int:
        tensors = [t for t in pytree.tree_leaves(list(self.env.values())) if isinstance(t, torch.Tensor)]
        own = {id(p) for p in self.module.state_dict(keep_vars=True).values()}
        sizes: dict[int, int] = {}
        for tensor in tensors:
            if id(tensor) not in own:
                key = tensor.untyped_storage().data_ptr()
                sizes[key] = max(sizes.get(key, 0), tensor.nbytes)
        return sum(sizes.values())


class _Observer(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, watch: Mapping[str, Watcher], batch_statistics: bool):
        super().__init__(module)
        self.watch, self.batch_statistics = watch, batch_statistics
        self.extra_traceback = False  # an error of a watcher is one sentence

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.watch:
            entering: Any = n.args[0]
            self.watch[n.name](self.env[entering])
        if self.batch_statistics and str(n.target) == "aten.batch_norm.default":
            args, _ = self.fetch_args_kwargs_from_env(n)
            x, weight, bias, _, _, _, _, eps, _ = args
            return torch.nn.functional.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
        return super().run_node(n)


def call(module: nn.Module, inputs: Example) -> Any:
    """The output; a network that draws random numbers on the CPU draws the same ones in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return module(*inputs.args, **inputs.kwargs)
