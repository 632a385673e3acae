"""The same question to Torch-Pruning: half of every channel, told nothing but the classifier layers.

It reports no indices that could be trusted, so what it kept is read off the values themselves: every entry of the
original is another number, and the entries that are left say which they are.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo import reference
from zoo.networks import NETWORKS
from zoo.networks.entry import arguments, redrawn

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
TOLERANCE = 1e-6


def distinct(model: nn.Module) -> nn.Module:
    """Double precision, every floating entry another number."""
    generator = torch.Generator().manual_seed(7)
    model = reference.fold(model).double()
    done: set[int] = set()
    for tensor in reference.named_tensors(model).values():
        if tensor.is_floating_point() and id(tensor) not in done:
            done.add(id(tensor))
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                tensor.add_(noise.abs() * 1e-6)
    return model


def classifiers(model: nn.Module, example: Any) -> list[nn.Module]:
    """Layers whose output is an output of the network; the last layer that runs where there is none."""
    seen: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        m.register_forward_hook(lambda m, _, out: seen.append((m, out)))
        for m in model.modules()
        if isinstance(m, LAYERS)
    ]
    args, kwargs = arguments(example)
    with torch.no_grad():
        outputs = reference.flat(model(*args, **kwargs))
    for hook in hooks:
        hook.remove()
    found = [m for m, out in seen if any(o.numel() == out.numel() and _same(o, out) for o in outputs)]
    return list(dict.fromkeys(found)) or [seen[-1][0]] if seen else []


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a.flatten().sort().values, b.flatten().sort().values))


def kept_by_value(original: Tensor, left: Tensor) -> tuple[NDArray[np.int64] | None, ...] | None:
    """Per dimension the indices that stayed; None where the values do not tell."""
    if original.ndim != left.ndim or left.numel() == 0:
        return None
    values = original.detach().numpy().reshape(-1)
    order = np.argsort(values, kind="stable")
    found = left.detach().numpy().reshape(-1)
    at = np.clip(np.searchsorted(values[order], found), 0, len(order) - 1)
    flat = order[at]
    if not np.array_equal(values[flat], found):
        return None
    grid = [index.reshape(left.shape) for index in np.unravel_index(flat, original.shape)]
    lines = []
    for dim, index in enumerate(grid):
        line = np.moveaxis(index, dim, 0).reshape(left.shape[dim], -1)
        if not (line == line[:, :1]).all():
            return None
        lines.append(line[:, 0].astype(np.int64))
    return tuple(None if len(line) == n else line for line, n in zip(lines, original.shape, strict=True))


def row(name: str) -> dict[str, Any]:
    if NETWORKS[name].single:
        why = "it runs in single precision only, in which values do not say which positions they were"
        return {"status": "not asked", "why": why}
    import torch_pruning as tp

    model, example = NETWORKS[name].build()
    model, example = distinct(model), reference.to_double(example)
    original = distinct(NETWORKS[name].build()[0])
    before = sum(p.numel() for p in model.parameters())
    started = time.process_time()
    pruner = tp.pruner.MagnitudePruner(
        model,
        example_inputs=example,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        global_pruning=False,
        ignored_layers=classifiers(model, example),
    )
    pruner.step()
    seconds = time.process_time() - started
    cut = 1 - sum(p.numel() for p in model.parameters()) / before
    result = {"seconds": seconds, "cut": cut}
    inputs = redrawn(example, 3, seed=5)
    got = reference.run(model.eval(), inputs)
    kept, unclear = kept_of(original, model)
    if unclear:
        return {**result, "status": "wrong", "why": f"entries of '{unclear[0]}' are no part of the original"}
    if cut < 0.01:
        return {**result, "status": "nothing", "why": "less than 1 % of the parameters were removed"}
    errors = {s: judged(original, kept, inputs, got, s) for s in ("all", "kept", "drift")}
    result["error"] = min(errors["all"], errors["kept"])
    if result["error"] <= TOLERANCE:
        return {**result, "status": "exact"}
    why = "the attention scale follows the head size" if errors["drift"] <= TOLERANCE else "differs from the reference"
    return {**result, "status": "wrong", "why": why}


def kept_of(original: nn.Module, pruned: nn.Module) -> tuple[dict[str, Any], list[str]]:
    """What stayed by name, and the names whose values do not tell."""
    left = reference.named_tensors(pruned)
    kept, unclear = {}, []
    for name, tensor in reference.named_tensors(original).items():
        if name not in left or not tensor.is_floating_point() or left[name].shape == tensor.shape:
            continue
        found = kept_by_value(tensor, left[name])
        if found is None:
            unclear.append(name)
        else:
            kept[name] = found
    return kept, unclear


def judged(original: nn.Module, kept: Any, inputs: Any, got: list[Tensor], statistics: str) -> float:
    expected = reference.Reference(copy.deepcopy(original), kept).run(inputs, statistics)
    return reference.error(expected, got)
