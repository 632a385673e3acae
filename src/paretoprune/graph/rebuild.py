"""The first choice of surgery: the user's own class with sliced parameters and updated size attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from paretoprune.core.graph import Example
from paretoprune.graph.capture import fresh
from paretoprune.graph.model import private_copy
from paretoprune.graph.op import bind
from paretoprune.graph.program import call
from paretoprune.graph.reference import randomised
from paretoprune.graph.surgery import Cut
from paretoprune.graph.traced import TracedGraph, tensors_of

Arguments = Mapping[str, Any]
Sizes = dict[str, Any]
_Update = Callable[[nn.Module, Arguments], Sizes]
"""New size attributes of a layer, from its sliced tensors and from the arguments of its operator after surgery."""


def _convolution(m: Any, args: Arguments) -> Sizes:
    groups = int(args["groups"])
    return {"out_channels": m.weight.shape[0], "in_channels": m.weight.shape[1] * groups, "groups": groups}


def _transposed(m: Any, args: Arguments) -> Sizes:
    groups = int(args["groups"])
    return {"in_channels": m.weight.shape[0], "out_channels": m.weight.shape[1] * groups, "groups": groups}


def _linear(m: Any, args: Arguments) -> Sizes:
    return {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}


def _features(m: Any, args: Arguments) -> Sizes:
    made = next((t for t in (m.weight, m.running_mean) if t is not None), None)
    return {} if made is None else {"num_features": made.shape[0]}


def _normalized(m: Any, args: Arguments) -> Sizes:
    return {"normalized_shape": tuple(args["normalized_shape"])}


def _group_norm(m: Any, args: Arguments) -> Sizes:
    channels = {} if m.weight is None else {"num_channels": m.weight.shape[0]}
    return {"num_groups": int(args["num_groups"]), **channels}


def _parameters(m: Any, args: Arguments) -> Sizes:
    return {"num_parameters": m.weight.shape[0]}


SIZE_ATTRIBUTES: dict[type[nn.Module], tuple[str, _Update]] = {
    **{getattr(nn, f"Conv{d}d"): (f"conv{d}d", _convolution) for d in (1, 2, 3)},
    **{getattr(nn, f"ConvTranspose{d}d"): (f"conv_transpose{d}d", _transposed) for d in (1, 2, 3)},
    nn.Linear: ("linear", _linear),
    **{getattr(nn, f"BatchNorm{d}d"): ("batch_norm", _features) for d in (1, 2, 3)},
    **{getattr(nn, f"InstanceNorm{d}d"): ("instance_norm", _features) for d in (1, 2, 3)},
    nn.LayerNorm: ("layer_norm", _normalized),
    nn.RMSNorm: ("rms_norm", _normalized),
    nn.GroupNorm: ("group_norm", _group_norm),
    nn.PReLU: ("prelu", _parameters),
}
"""Layers that hold sizes besides their weights, with the operator that each becomes."""


def rebuild(model: nn.Module, graph: TracedGraph, cut: Cut) -> tuple[nn.Module | None, str]:
    """(the user's class, "") or (None, why its forward cannot be made right).

    The class is a copy without hooks and with reparametrised weights folded; every submodule keeps its mode.
    """
    clone, _ = private_copy(model)
    if why := _put_tensors(clone, cut):
        return None, why
    _update_sizes(clone, cut.program.module)
    why = _differs(clone, graph, cut)
    for name, module in model.named_modules():
        if not why and name in dict(clone.named_modules()):
            clone.get_submodule(name).training = module.training
    return (None, why) if why else (clone, "")


def _put_tensors(clone: nn.Module, cut: Cut) -> str:
    """Give the clone the sliced tensors, tied ones once. Why it cannot be done, if so."""
    sliced = tensors_of(cut.program.module)
    mine = tensors_of(clone)
    if missing := [n for n in mine if n in sliced and mine[n].dtype != sliced[n].dtype]:
        return f"'{missing[0]}' has another type in the graph"
    done: dict[int, torch.Tensor] = {}
    for name, old in mine.items():
        new = sliced.get(name)
        if new is None or new.shape == old.shape:
            continue
        owner, leaf = clone.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        value = done.setdefault(id(new), _like(old, new))
        if isinstance(value, nn.Parameter):
            owner.register_parameter(leaf, value)
        else:
            owner._buffers[leaf] = value
    return ""


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    data = new.detach().clone().to(old.device)
    return nn.Parameter(data, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else data


def _update_sizes(clone: nn.Module, program: fx.GraphModule) -> None:
    modules = dict(clone.named_modules())
    for node in program.graph.nodes:
        paths = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        module = modules.get(paths[-1]) if paths else None
        if module is None or type(module) not in SIZE_ATTRIBUTES:
            continue
        operator, update = SIZE_ATTRIBUTES[type(module)]
        if str(node.target).split(".")[1:2] == [operator]:
            for name, value in update(module, bind(node)).items():
                setattr(module, name, value)


def _differs(clone: nn.Module, graph: TracedGraph, cut: Cut) -> str:
    """Why the class differs from the rewritten graph; empty if outputs and gradients agree at two batch sizes."""
    for seed, batch in ((2, 2), (3, 3)):
        why = _compare_call(clone, cut.program.module, randomised(graph.example, seed, batch))
        if why:
            return why
    return ""


def _compare_call(clone: nn.Module, program: nn.Module, inputs: Example) -> str:
    try:
        theirs = _leaves(call(clone, fresh(inputs)))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError, KeyError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"its forward fails at the new sizes ({lines[0][:160]})"
    ours = _leaves(call(program, fresh(inputs)))
    if len(ours) != len(theirs) or any(not _close(a, b) for a, b in zip(theirs, ours, strict=True)):
        return "its forward gives other values than the rewritten graph at the new sizes"
    return _compare_gradients(clone, program, theirs, ours)


def _compare_gradients(
    clone: nn.Module, program: nn.Module, theirs: list[torch.Tensor], ours: list[torch.Tensor]
) -> str:
    mine = dict(clone.named_parameters(remove_duplicate=False))
    names = [n for n, p in program.named_parameters() if p.requires_grad and n in mine]
    grads = []
    for module, outputs in ((clone, theirs), (program, ours)):
        trained = [o.double().square().sum() for o in outputs if o.requires_grad]
        if not trained or not names:
            return ""
        named = dict(module.named_parameters(remove_duplicate=False))
        grads.append(torch.autograd.grad(torch.stack(trained).sum(), [named[n] for n in names], allow_unused=True))
    for name, a, b in zip(names, *grads, strict=True):
        if (a is None) != (b is None) or (a is not None and b is not None and not _close(a, b)):
            return f"the gradient of '{name}' differs from the rewritten graph's"
    return ""


def _leaves(output: Any) -> list[torch.Tensor]:
    return [v for v in pytree.tree_leaves(output) if isinstance(v, torch.Tensor)]


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    scale = float(b.detach().abs().max()) if b.numel() else 0.0
    return a.shape == b.shape and bool(torch.allclose(a, b.to(a.device), rtol=1e-3, atol=1e-4 * scale + 1e-12))
