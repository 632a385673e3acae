"""`pp.hand_back`: a pruned network that was trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from paretoprune import frameworks
from paretoprune import graph as graphs
from paretoprune.core.copies import duplicate
from paretoprune.core.errors import ModelError, UsageError
from paretoprune.graph.model import unwrapped
from paretoprune.graph.program import GraphProgram
from paretoprune.pipeline.prune import copy_tensors
from paretoprune.pipeline.pruned import Pruned
from paretoprune.pipeline.put_zeros import fitting

MAX_NAMES = 4


def hand_back(pruned: Pruned, trained: nn.Module | Mapping[str, Tensor]) -> Pruned:
    """`pruned` with the values of `trained`: its own `model`, or a copy of it, or a state dict, trained by any library.

    Take `pruned.model` out, train it with whatever trains torch modules, and hand it back: the result is a Pruned that
    `pp.save` and the others take. Only values are taken over, into a copy: wrappers (data parallel,
    torch.compile), hooks and a patched forward stay behind, and `pruned` is not changed.

    Raises ModelError for other names, shapes or types, tied tensors that came apart, and values that are not finite.
    """
    if not frameworks.is_keras(pruned.model):
        given = _tensors(trained)
        _compare(pruned.model, given, whole=isinstance(trained, nn.Module))
        result = with_values(pruned, given)
        return replace(result, notes=(*result.notes, *_filled(pruned, result)))
    raise UsageError("a Keras model is trained in place (pruned.model.fit), and saved as it is: nothing to hand back")


def _filled(before: Pruned, after: Pruned) -> list[str]:
    """A sentence on zeros that were trained away."""
    new = graphs.tensors_of(after.model)
    old = {n: t for n, t in graphs.tensors_of(before.model).items() if t.ndim > 1 and fitting(n, before.plan.sparsity)}
    lost = [n for n, t in old.items() if bool(((t == 0) & (new[n] != 0)).any())]
    names = ", ".join(f"'{n}'" for n in lost[:MAX_NAMES])
    return [f"zeros of the plan were trained away in {names}: train inside recover.Masked"] if lost else []


def with_values(pruned: Pruned, tensors: Mapping[str, Tensor]) -> Pruned:
    """Copies of network and graph with these values."""
    model = duplicate(pruned.model)
    held = graphs.tensors_of(model)
    with torch.no_grad():
        for name, tensor in held.items():
            if name in tensors:
                tensor.copy_(tensors[name])
    graphs.check_sound(model)
    module, program = pruned.program.module, pruned.program
    if module is pruned.model:
        again = model
    else:
        again = duplicate(module)
        copy_tensors(model, again)
    return replace(
        pruned,
        model=model,
        program=GraphProgram(again, program.contractions, program.batch_norms),  # type: ignore[arg-type]
    )


def _tensors(trained: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if isinstance(trained, nn.Module):
        return graphs.tensors_of(unwrapped(trained)[0])
    if isinstance(trained, Mapping) and all(isinstance(t, Tensor) for t in trained.values()):
        return trained
    raise UsageError(f"hand_back got a {type(trained).__name__}: give the trained module, or its state dict")


def _compare(model: nn.Module, given: Mapping[str, Tensor], whole: bool) -> None:
    """`whole`: buffers that a state dict leaves out must be there too."""
    own = graphs.tensors_of(model)
    wanted = own if whole else model.state_dict(keep_vars=True)
    both = {n: (given[n], t) for n, t in own.items() if n in given}
    wrong = {
        "missing": [f"'{n}'" for n in wanted if n not in given],
        "unknown": [f"'{n}'" for n in given if n not in own],
        "shape": [f"'{n}' {tuple(g.shape)} for {tuple(t.shape)}" for n, (g, t) in both.items() if g.shape != t.shape],
        "type": [f"'{n}' {g.dtype} for {t.dtype}" for n, (g, t) in both.items() if g.dtype != t.dtype],
    }
    parts = [f"{kind}: {', '.join(names[:MAX_NAMES])}" for kind, names in wrong.items() if names]
    if parts:
        raise ModelError(
            f"what was handed back is not the {type(model).__name__} that was taken out ({'; '.join(parts)}): merge "
            "adapters, take off wrappers, and convert types (.float()) before"
        )
    _check_ties(own, given)


def _check_ties(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    first: dict[int, str] = {}
    for name, tensor in own.items():
        twin = first.setdefault(id(tensor), name)
        if twin != name and twin in given and name in given and not torch.equal(given[twin], given[name]):
            raise ModelError(f"'{twin}' and '{name}' were one tensor and came apart: tie them, then train again")
