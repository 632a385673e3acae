"""How the loss of each sample moves with gates on what enters contractions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from paretoprune.core.data import batch_size, take
from paretoprune.core.errors import DataError, PruneError
from paretoprune.core.graph import Contraction, placeholders
from paretoprune.graph.influence import moved
from paretoprune.graph.traced import TracedGraph


def gate_derivatives(
    graph: TracedGraph,
    contractions: Sequence[Contraction],
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Tensor],
    samples: int = 256,
) -> dict[str, Tensor]:
    """(inputs, samples) by weight: dL_n/dgate = Σ x · dL_n/dx over the places of sample n, for a gate of 1.

    `loss(output, labels)` is a mean over samples; in eval mode they do not meet, so that its gradient at one sample,
    times the number of samples, is that sample's. Raises DataError without labels, PruneError for a loss that is not
    finite.
    """
    if not contractions:
        return {}
    module = graph.program.module
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    found: dict[str, list[Tensor]] = {c.weight: [] for c in contractions}
    was = module.training
    module.eval()
    try:
        with torch.enable_grad():
            for inputs, labels in take(batches, samples):
                if labels is None:
                    raise DataError("a calibration batch has no labels: gradients of the loss need (x, y) or a dict")
                run = _Gated(module, {c.node for c in contractions})
                output = run.run(*placeholders(module, moved(inputs, device)))
                _add(found, contractions, run.probes, loss(output, labels), batch_size(inputs))
    finally:
        module.train(was)
    return {weight: torch.cat(parts, dim=1) for weight, parts in found.items() if parts}


def _add(
    found: dict[str, list[Tensor]],
    contractions: Sequence[Contraction],
    probes: dict[str, Tensor],
    loss: Tensor,
    batch: int,
) -> None:
    if not bool(torch.isfinite(loss)):
        raise PruneError(f"the loss on a calibration batch is {float(loss.detach())}: check inputs and labels")
    reached = [c for c in contractions if c.node in probes]
    grads = torch.autograd.grad(loss * batch, [probes[c.node] for c in reached], allow_unused=True)
    for contraction, grad in zip(reached, grads, strict=True):
        probe = probes[contraction.node].detach()
        product = torch.zeros_like(probe) if grad is None else probe * grad
        found[contraction.weight].append(per_sample(product, contraction.dim, batch).sum(dim=2).cpu())


def per_sample(entering: Tensor, dim: int, batch: int) -> Tensor:
    """(inputs, samples, places) of what enters a contraction that sums over `dim`.

    Where dimension 0 is not made of whole samples, its entries stand for samples.
    """
    lead = entering.movedim(dim, 0)
    samples = batch if lead.shape[1] % batch == 0 else lead.shape[1]
    return lead.reshape(lead.shape[0], samples, -1)


class _Gated(fx.Interpreter):
    """Runs the graph and gives each watched node a copy of its input of its own, to be differentiated by."""

    def __init__(self, module: fx.GraphModule, nodes: set[str]):
        super().__init__(module)
        self.extra_traceback = False
        self._nodes = nodes
        self.probes: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self._nodes:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        entering = args[0]
        probe = entering.clone() if entering.requires_grad else entering.detach().requires_grad_()
        self.probes[n.name] = probe
        return n.target(probe, *args[1:], **kwargs)  # type: ignore[operator]
