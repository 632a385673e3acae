"""A network as a graph of flat tensors: what a file of our own holds."""

from __future__ import annotations

from torch import fx, nn
from torch.utils import _pytree as pytree

from paretoprune.core.errors import CaptureError, FileError
from paretoprune.core.graph import Example
from paretoprune.graph.capture import capture
from paretoprune.graph.inputs import registered
from paretoprune.graph.model import check_example, check_sound, private_copy, untouched_rng, unwrapped
from paretoprune.graph.program import runnable
from paretoprune.graph.serialize import dump


def flat(model: nn.Module, example: Example) -> tuple[fx.GraphModule, Example]:
    """(graph, example): the graph takes the example's leaves in their order and gives its output's leaves.

    The batch is dynamic, and what the example says. The model is not changed. Raises ModelError, CaptureError,
    DataError.
    """
    module, inputs = captured(model, example)
    order = _names(module)
    named = {n: inputs.kwargs[n] for n in order if n in inputs.kwargs}
    inputs = Example(inputs.args, named, dynamic=example.dynamic)
    leaves = pytree.tree_leaves((inputs.args, dict(inputs.kwargs)))
    count = sum(n.op == "placeholder" for n in module.graph.nodes)
    if len(leaves) != count:
        raise CaptureError(
            f"the example has {len(leaves)} values and the graph of {type(model).__name__} takes {count}: give the "
            "example that it was captured with"
        )
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    return fx.GraphModule(module, graph).eval(), inputs


def captured(model: nn.Module, example: Example) -> tuple[fx.GraphModule, Example]:
    """(graph that takes and gives what the model does, example as it takes it). Raises as `flat` does."""
    model, _ = unwrapped(model)
    check_sound(model)
    if any(True for _ in model.parameters()):
        check_example(model, example)
    if isinstance(model, fx.GraphModule) and _is_plain(model):
        return model, example
    return _captured(model, example)


def _is_plain(model: fx.GraphModule) -> bool:
    """Is it a captured graph already, of operators that a file can hold?"""
    try:
        dump(model)
    except FileError:
        return False
    return True


def _captured(model: nn.Module, example: Example) -> tuple[fx.GraphModule, Example]:
    registered((example.args, dict(example.kwargs)))
    with untouched_rng(model):
        clone, _ = private_copy(model)
        captured = capture(clone, example, example.dynamic)
    return runnable(captured.module), captured.example


def _names(module: fx.GraphModule) -> list[str]:
    """Names of the inputs in the captured order."""
    graph = module.graph
    info = getattr(graph._codegen, "pytree_info", None)
    if info is not None:
        return list(info.orig_args)
    return [str(n.target) for n in graph.nodes if n.op == "placeholder"]
