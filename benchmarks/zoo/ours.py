"""One network, pruned and judged: a row of the table."""

from __future__ import annotations

import copy
import importlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import paretoprune as pp
from paretoprune.core.errors import PruneError
from paretoprune.pipeline.prune import prune
from paretoprune.pipeline.pruned import Pruned
from zoo import reference
from zoo.networks import NETWORKS
from zoo.networks.entry import arguments, redrawn

RATIO, BATCH, SEED = 0.5, 3, 5
Way = tuple[str, bool]
SINGLE_TOLERANCE, CORRUPTIONS = 1e-5, 6
WAYS: tuple[Way, ...] = (("all", True), ("all", False), ("kept", True), ("kept", False))
SINGLE_WAYS: tuple[Way, ...] = (("all", False), ("kept", False))
"""How the reference runs: over which positions means by hand are taken, and whether casts to single are undone."""
TIMED = {
    "capture": "paretoprune.graph.traced.capture",
    "trace": "paretoprune.graph.trace",
    "cut": "paretoprune.graph.cut",
    "check": "paretoprune.graph.check",
    "rebuild": "paretoprune.graph.rebuild",
}


class Clock:
    """CPU seconds of named functions, inclusive, and the last value that each gave."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.last: dict[str, Any] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        undo = []
        for label, path in TIMED.items():
            owner, _, leaf = path.rpartition(".")
            module = importlib.import_module(owner)
            undo.append((module, leaf, getattr(module, leaf)))
            setattr(module, leaf, self._timed(label, getattr(module, leaf)))
        try:
            yield
        finally:
            for module, leaf, function in undo:
                setattr(module, leaf, function)

    def _timed(self, label: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                value = self.last[label] = function(*args, **kwargs)
                return value
            finally:
                self.seconds[label] += time.process_time() - started

        return call


def row(name: str, axes: str) -> dict[str, Any]:
    """Everything that the table says of one network. Refusals and crashes are results too."""
    clock = Clock()
    try:
        with clock.running():
            model, example, pruned = halved(name, axes)
    except PruneError as error:
        return {**costs(clock), **found(clock), "status": "refused", "why": f"{type(error).__name__}: {error}"}
    result = {**costs(clock), **found(clock), **sizes(model, pruned), **judged(name, pruned, example)}
    for column, check in (("trains", trains), ("reloads", reloads)):
        result[column] = answer(check, pruned, example)
    result["onnx"] = answer(onnx, name, pruned)
    if result["onnx"] is not True and (original := answer(onnx, name, None)) is not True:
        result["onnx"] = f"nor does the original: {original}"
    return result


def fresh(name: str) -> tuple[nn.Module, Any]:
    """The network and its example in the precision that it is judged in."""
    model, example = NETWORKS[name].build()
    return (model, example) if NETWORKS[name].single else (model.double(), reference.to_double(example))


def halved(name: str, axes: str) -> tuple[nn.Module, Any, Pruned]:
    """(the network, its example, the pruned network)."""
    model, example = fresh(name)
    return model, example, prune(model, example, ratio=RATIO, axes=axes)


def costs(clock: Clock) -> dict[str, Any]:
    spent = clock.seconds
    return {
        "capture_s": round(spent["capture"], 3),
        "axes_s": round(spent["trace"] - spent["capture"], 3),
        "surgery_s": round(spent["cut"], 3),
        "check_s": round(spent["check"], 3),
        "rebuild_s": round(spent["rebuild"], 3),
    }


def found(clock: Clock) -> dict[str, Any]:
    """Axes, and what is frozen and why, as far as a trace was made."""
    graph = clock.last.get("trace")
    if graph is None:
        return {}
    frozen = Counter(a.why for a in graph.axes if not a.prunable)
    return {
        "axes": len(graph.axes),
        "prunable": sum(a.prunable for a in graph.axes),
        "frozen": dict(frozen.most_common(12)),
        "graph_notes": list(graph.notes)[:12],
    }


def sizes(model: nn.Module, pruned: Pruned) -> dict[str, Any]:
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, pruned.model))
    return {
        "parameters": before,
        "cut": round(1 - after / before, 4),
        "output": "class" if type(pruned.model) is type(model) else "graph",
        "notes": [n for n in pruned.notes if "rewritten graph" in n],
    }


def judged(name: str, pruned: Pruned, example: Any) -> dict[str, Any]:
    """Compare with the independent reference, and see that the reference can tell right from wrong."""
    inputs = redrawn(example, BATCH, seed=SEED)
    tolerance = SINGLE_TOLERANCE if NETWORKS[name].single else reference.TOLERANCE

    def expected(kept: reference.Kept, way: Way) -> list[torch.Tensor]:
        return reference.Reference(fresh(name)[0], kept).run(inputs, way[0], strict=way[1])

    def apart(want: list[torch.Tensor], way: Way) -> float:
        models = (pruned.model, pruned.program.module)
        return max(reference.error(want, reference.run(m, inputs, strict=way[1])) for m in models)

    errors: dict[Way, float] = {}
    for way in SINGLE_WAYS if NETWORKS[name].single else WAYS:
        errors[way] = apart(expected(pruned.kept, way), way)
        if errors[way] <= tolerance:
            break
    way = min(errors, key=lambda w: errors[w])
    want = expected(pruned.kept, way)
    caught = 0.0
    for swapped in islice(corrupted(pruned.kept), CORRUPTIONS):
        caught = max(caught, reference.error(want, expected(swapped, way)))
        if caught > 100 * tolerance:
            break
    result = {
        "error": errors[way],
        "statistics": way[0],
        "strict": way[1],
        "moved": reference.error(expected({}, way), want),
        "varies": max((reference.error([a[:1]], [a[1:2]]) for a in want if a.ndim and len(a) > 1), default=0.0),
        "caught": caught,
        "weights": copied(name, pruned),
    }
    proved = result["varies"] > 10 * tolerance and caught > 10 * tolerance
    exact = result["error"] <= tolerance and result["weights"]
    return {**result, "status": "wrong" if not exact else "exact" if proved else "unproved"}


def corrupted(kept: reference.Kept) -> Iterator[reference.Kept]:
    """Half of the kept indices of one dimension exchanged for removed ones, one dimension at a time."""
    cuts = [(n, d, np.asarray(i)) for n, dims in kept.items() for d, i in enumerate(dims) if i is not None and len(i)]
    for name, dim, index in sorted(cuts, key=lambda c: -len(c[2])):
        free = np.setdiff1d(np.arange(index.max() + 1), index)[: (len(index) + 1) // 2]
        if free.size:
            swapped = np.concatenate([index[: -free.size], free])
            yield {**kept, name: tuple(swapped if d == dim else i for d, i in enumerate(kept[name]))}


def copied(name: str, pruned: Pruned) -> bool:
    """Are the pruned parameters the original's at the kept indices?"""
    original = reference.named_tensors(reference.fold(fresh(name)[0]))
    left = reference.named_tensors(pruned.program.module)
    for key, dims in pruned.kept.items():
        if key not in original or key not in left:
            continue
        value = original[key].detach()
        for dim, index in enumerate(dims):
            if index is not None:
                value = value.index_select(dim, torch.as_tensor(np.asarray(index, dtype=np.int64)))
        if value.shape != left[key].shape or not torch.allclose(value, left[key].detach().to(value.dtype)):
            return False
    return True


# -- what the result is good for -----------------------------------------------------------------------------------


def answer(check: Any, *given: Any) -> bool | str:
    """True, or why not in one line. Anything may go wrong in a runtime: it is a column, not the end of the run."""
    try:
        return check(*given)
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def trains(pruned: Pruned, example: Any) -> bool | str:
    model = copy.deepcopy(pruned.model).train()
    model.requires_grad_(True)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    args, kwargs = arguments(redrawn(example, 4, seed=SEED))
    outputs = [v for v in reference.flat(model(*args, **kwargs)) if v.is_floating_point() and v.requires_grad]
    loss = sum((v.double().square().mean() for v in outputs), torch.zeros((), dtype=torch.float64))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if not bool(torch.isfinite(loss.detach())):
        return f"the loss is {float(loss.detach())}"
    moved = sum(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return True if moved > len(before) // 2 else f"{moved} of {len(before)} parameters changed"


def reloads(pruned: Pruned, example: Any) -> bool | str:
    inputs = redrawn(example, BATCH, seed=SEED)
    with tempfile.TemporaryDirectory() as folder:
        again = pp.load(pp.save(pruned, folder))
    gap = reference.error(*(reference.run(m, inputs, strict=False) for m in (pruned.model, again.model)))
    return True if gap <= 1e-12 else f"differs by {gap:.2g}"


def onnx(name: str, pruned: Pruned | None) -> bool | str:
    """Single precision through pp.export, which reloads the file and compares. Without `pruned`, the original."""
    model, example = NETWORKS[name].build()
    if pruned is not None and type(pruned.model) is type(model):
        model = copy.deepcopy(pruned.model).float()
    elif pruned is not None:  # a graph captured in double precision says so in its casts
        model = pp.apply(model, example, pruned.plan).model
    else:
        model = reference.fold(model)
    with tempfile.TemporaryDirectory() as folder:
        pp.export(model.eval(), example, Path(folder) / "model.onnx")
    return True
