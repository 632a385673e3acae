"""What a network does in training mode that a graph captured in eval mode does not show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from paretoprune.core.graph import Example
from paretoprune.graph.op import bind
from paretoprune.graph.rules import RULES
from paretoprune.graph.shared import unwritten

_RECURRENT = ("aten.lstm.", "aten.gru.", "aten.rnn_tanh.", "aten.rnn_relu.")


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that draw random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += torch.Tag.nondeterministic_seeded in func.tags and not _certain(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _certain(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """An attention without dropout draws nothing, although its operator could."""
    names = [a.name for a in func._schema.arguments]
    if "dropout_p" not in names:
        return False
    at = names.index("dropout_p")
    return not (args[at] if at < len(args) else kwargs.get("dropout_p", 0.0))


def training_notes(model: nn.Module, example: Example, captured: fx.GraphModule) -> tuple[str, ...]:
    """Sentences on stochastic branches and outputs of training mode that the captured graph lacks.

    Runs `model`, a private copy, once in training mode; its buffers and its mode are put back. The run is on tensors
    without values, which costs neither memory nor arithmetic, and on real ones only where forward reads a value.
    """
    buffers = [(value, value.clone()) for value in model.buffers()]
    model.train()
    try:
        try:
            with FakeTensorMode(allow_non_fake_inputs=True) as hollow:
                draws, output = _run(model, example, hollow.from_tensor)
        except Exception:  # noqa: BLE001 - the real run says what is wrong, if anything is
            draws, output = _run(model, example, lambda value: value.detach().clone())
    except Exception as error:  # noqa: BLE001 - whatever forward raises in training is the user's business
        return (f"the network could not be run in training mode ({type(error).__name__}): branches of it are not kept",)
    finally:
        model.eval()
        with torch.no_grad():
            for value, before in buffers:
                value.copy_(before)
    return tuple(_lost(draws, output, captured))


def _run(model: nn.Module, example: Example, made: Callable[[torch.Tensor], torch.Tensor]) -> tuple[int, Any]:
    """(random draws, output)."""
    args, kwargs = pytree.tree_map_only(torch.Tensor, made, (example.args, dict(example.kwargs)))
    with torch.no_grad(), unwritten(model.parameters()), _Draws() as draws:
        output = model(*args, **kwargs)
    return draws.count, output


def _lost(draws: int, output: Any, captured: fx.GraphModule) -> list[str]:
    known = sum(_kept(n) for n in captured.graph.nodes if n.op == "call_function")
    notes = []
    if draws > known:
        notes.append(f"in training mode the network draws random numbers in {draws - known} place(s) that are not kept")
    given = next(n for n in captured.graph.nodes if n.op == "output").args[0]
    trained = [v for v in pytree.tree_leaves(output) if isinstance(v, torch.Tensor)]
    kept = [v for v in pytree.tree_leaves(given) if isinstance(v, fx.Node)]
    foreseen = all(v.meta.get("val") is not None for v in kept)
    if foreseen and len(trained) != len(kept):
        notes.append(f"in training mode the network gives {len(trained)} output(s), in eval mode another number")
    return notes


def _kept(node: fx.Node) -> int:
    """How often an operator of the graph draws random numbers in training mode."""
    name = str(node.target)
    if "num_layers" in (args := bind(node) if name.startswith(_RECURRENT) else {}):
        return int(args["num_layers"]) - 1 if args["dropout"] else 0
    chosen = "scaled_dot_product" in name  # draws if a number says so, which eval mode makes zero
    stochastic = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return int(name in RULES and stochastic and not chosen)
