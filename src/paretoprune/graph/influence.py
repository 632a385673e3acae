"""How much a residual block changes what passes it: measured on calibration batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from paretoprune.core.data import take
from paretoprune.core.errors import DataError
from paretoprune.core.graph import Example, placeholders
from paretoprune.graph.algebra import atoms_of
from paretoprune.graph.traced import TracedGraph


def influences(
    graph: TracedGraph, names: Sequence[str], batches: Iterable[Any], samples: int = 256
) -> dict[str, float]:
    """Block Influence, 1 − E[cos(x, s)], of every block `s = x + f(x)`: 0 for one that changes nothing, at most 2.

    Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect"
    (arXiv:2403.03853), eq. 1: the mean over samples and positions of the cosine between the vectors of width that
    enter and leave. Where the value has no width that layers make, a sample is one vector. About `samples` samples
    are run once, in eval mode without gradients. Raises DataError for no batch or values that are not finite.
    """
    sums = graph.residual.sums(names)
    found = {total.name: _Mean(skip.name, _width_dim(graph, total)) for total, skip in sums.items()}
    module = graph.program.module
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    was = module.training
    module.eval()
    try:
        with torch.no_grad():
            for inputs, _ in take(batches, samples):
                _Watching(module, found).run(*placeholders(module, moved(inputs, device)))
    finally:
        module.train(was)
    by_sum = {total.name: name for name, (total, _) in zip(names, sums.items(), strict=True)}
    return {by_sum[node]: mean.influence(by_sum[node]) for node, mean in found.items()}


def moved(inputs: Example, device: torch.device) -> Example:
    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    args, kwargs = pytree.tree_map(move, (inputs.args, dict(inputs.kwargs)))
    return Example(args, kwargs)


def _width_dim(graph: TracedGraph, total: fx.Node) -> int | None:
    """The last dim whose positions layers make: channels, not places."""
    found = graph.inferred
    made = {a for op in found.ops.values() if "out" in op.memo for a in atoms_of(op.resolve(op.memo["out"]))}
    dims = [i for i, e in enumerate(found.flat(total)) if made & set(atoms_of(found.axes.resolve(e)))]
    return dims[-1] if dims else None


class _Mean:
    """Sum of cosines and how many there were."""

    def __init__(self, skip: str, dim: int | None):
        self.skip, self.dim = skip, dim
        self.total, self.count = 0.0, 0

    def add(self, entering: torch.Tensor, leaving: torch.Tensor) -> None:
        x, s = (v.double() for v in (entering, leaving))
        if self.dim is None:
            x, s = (v.reshape(len(v), -1) for v in (x, s))
        cosines = _cosines(x, s, 1 if self.dim is None else self.dim)
        self.total += float(cosines.sum())
        self.count += cosines.numel()

    def influence(self, name: str) -> float:
        if not self.count:
            raise DataError("no calibration batch: the influence of blocks is measured on some")
        if not torch.isfinite(torch.tensor(self.total)):
            raise DataError(f"what passes block '{name}' is not finite: check inputs and weights")
        return 1 - self.total / self.count


def _cosines(x: torch.Tensor, s: torch.Tensor, dim: int) -> torch.Tensor:
    """1 where both vectors are zero, for then nothing changed."""
    norms = x.norm(dim=dim) * s.norm(dim=dim)
    cosines = (x * s).sum(dim) / norms.where(norms > 0, torch.ones_like(norms))
    result: torch.Tensor = cosines.where(~(x == s).all(dim), torch.ones_like(cosines))
    return result


class _Watching(fx.Interpreter):
    """Runs a graph and looks at what enters and leaves some sums."""

    def __init__(self, module: fx.GraphModule, sums: Mapping[str, _Mean]):
        super().__init__(module)
        self._sums = sums

    def run_node(self, n: fx.Node) -> Any:
        mean = self._sums.get(n.name)
        entering = None if mean is None else self.env[next(a for a in n.all_input_nodes if a.name == mean.skip)]
        value = super().run_node(n)
        if mean is not None and entering is not None:
            mean.add(entering, value)
        return value
