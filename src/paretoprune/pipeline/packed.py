"""`pp.pack`: a network whose layers with zeros run on the packed kernels, where that is faster."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from paretoprune import graph as graphs
from paretoprune.core.data import split_batch
from paretoprune.core.errors import ModelError, SurgeryError, UsageError
from paretoprune.core.graph import Example
from paretoprune.pipeline.packed_race import Array, Choice, Rival, fastest, torch_layer
from paretoprune.sparsity import save_packed
from paretoprune.sparsity.kernels import Grid, choose
from paretoprune.sparsity.kernels.layers import MOST_THREADS
from paretoprune.sparsity.lowering import Site, lower, note_shapes, sites_of, watched
from paretoprune.sparsity.parts import Weight
from paretoprune.targets.sparse_cpu import HowToPack, Keep

SNR_DB = 20.0
TOLERANCE = 1e-4
"""Largest error of a packed fp32 network, as a share of the largest output."""


class PackedNetwork(fx.GraphModule):
    """Takes and gives what the network did; inference on the CPU, float32.

    `choices`: what became of each layer. `weights`: the packed ones by name. `torch.export` and `torch.compile` take
    it: a layer is the operator torch.ops.paretoprune.sparse_linear or sparse_conv.
    """

    choices: tuple[Choice, ...]
    weights: Mapping[str, Weight]

    def __init__(self, module: fx.GraphModule, choices: Sequence[Choice], weights: Mapping[str, Weight]) -> None:
        super().__init__(module, module.graph, "PackedNetwork")
        self.choices, self.weights = tuple(choices), dict(weights)

    @property
    def size_bytes(self) -> int:
        """Of its tensors as a file holds them: packed weights, and what stayed dense."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())

    def save(self, path: str | Path) -> Path:
        """Write the packed weights as one safetensors file, which `paretoprune.sparsity.load_packed` reads."""
        return save_packed(self.weights, path)


def pack(
    model: nn.Module,
    example: Any,
    *,
    keep: Keep = "measured",
    precision: str = "fp32",
    calibration: Iterable[Any] | None = None,
    rival: Rival | None = None,
    threads: int | None = None,
    sample: Any = None,
    margin: float = 1.0,
) -> PackedNetwork:
    """The network with packed kernels for its linear layers and 2-d convolutions, fused with what follows them.

    Batch norms are folded first. Each layer is raced against its dense self on what `sample` (the example) gives it, on
    as many `threads` as torch uses: it stays dense where that is more than `margin` times as fast, and `choices` says
    so; `keep="all"` packs what can be packed.
    `precision="int8"` needs `calibration` (batches) for the ranges of what layers are given; weights may then have 8
    bits, one scale for an output, where that is faster than 32. `rival`: another dense runtime to race against. The
    result is compared with the model on the example. The model is not changed.

    Raises UsageError for other arguments, CaptureError and ModelError for the model, TargetError where the kernels were
    not compiled, SurgeryError where the outputs differ.
    """
    if keep not in ("measured", "all"):
        raise UsageError(f'keep={keep!r}: expected "measured" or "all"')
    if precision not in ("fp32", "int8"):
        raise UsageError(f'precision={precision!r}: the packed kernels compute in "fp32" or "int8"')
    if precision == "int8" and calibration is None:
        raise UsageError("int8 needs calibration batches to learn the ranges; give calibration=")
    given = Example.of(example)
    size = given if sample is None else Example.of(sample)
    count = threads or min(torch.get_num_threads(), MOST_THREADS)
    how = HowToPack(size, rival or torch_layer, count, precision, calibration, keep, margin)
    return packed_as(model, given, how)


def packed_as(model: nn.Module, example: Example, how: HowToPack) -> PackedNetwork:
    """See `pack`."""
    choose()
    if away := next((n for n, t in model.named_parameters() if t.device.type != "cpu"), ""):
        raise UsageError(
            f"'{away}' is on {model.get_parameter(away).device}: packed kernels run on the CPU; model.cpu()"
        )
    captured, inputs = graphs.captured(model, example)
    module = graphs.fold_norms(captured)
    module.eval()
    module.requires_grad_(False)
    sites, left = sites_of(module)
    seen = _inputs(module, sites, how.sample)
    note_shapes(module, sites, lambda: module(*inputs.args, **inputs.kwargs))
    grids = _grids(module, sites, how.calibration or ()) if how.precision == "int8" else {}
    found = {s: fastest(s, seen.get(s), grids.get(s), how) for s in sites}
    forms = {site: option for site, (_, option) in found.items() if option is not None}
    lower(module, {site: (option.weight, option.grid) for site, option in forms.items()})
    results = [choice for choice, _ in found.values()]
    skipped = [Choice(name, "", 0.0, why) for name, why in left.items()]
    weights = {site.weight: option.weight for site, option in forms.items()}
    packed = PackedNetwork(module, [*results, *skipped], weights).eval()
    _check(captured, packed, inputs, how.precision)
    return packed


def _inputs(module: fx.GraphModule, sites: Sequence[Site], example: Example) -> dict[Site, Array]:
    """What each layer is given on the example, the first time that it runs."""
    seen: dict[fx.Node, Array] = {}

    def see(node: fx.Node, x: Any) -> None:
        if isinstance(x, Tensor) and x.dtype == torch.float32:
            seen.setdefault(node, np.ascontiguousarray(x.detach().cpu().numpy()))

    with watched(module, see, (site.x for site in sites)):
        module(*example.args, **example.kwargs)
    return {site: seen[site.x] for site in sites if site.x in seen}


def _grids(module: fx.GraphModule, sites: Sequence[Site], batches: Iterable[Any]) -> dict[Site, Grid]:
    """From smallest to largest value of all batches, zero included."""
    low, high = dict.fromkeys((site.x for site in sites), 0.0), dict.fromkeys((site.x for site in sites), 0.0)

    def see(node: fx.Node, x: Any) -> None:
        if isinstance(x, Tensor) and x.numel():
            least, most = x.aminmax()
            # Not min and max, which would drop NaN.
            low[node] = float(np.minimum(low[node], float(least)))
            high[node] = float(np.maximum(high[node], float(most)))

    with watched(module, see, low):
        for batch in batches:
            inputs = batch if isinstance(batch, Example) else split_batch(batch)[0]
            module(*inputs.args, **inputs.kwargs)
    if any(not math.isfinite(v) for v in (*low.values(), *high.values())):
        raise ModelError("a layer is given values that are not finite on the calibration batches")
    scales = {node: (high[node] - low[node]) / 255 or 1.0 for node in low}
    grids = {node: Grid(scale, int(np.clip(round(-low[node] / scale), 0, 255))) for node, scale in scales.items()}
    return {site: grids[site.x] for site in sites}


def _check(before: nn.Module, after: nn.Module, example: Example, precision: str) -> None:
    with torch.no_grad():
        pairs = [pytree.tree_leaves(m(*example.args, **example.kwargs)) for m in (before, after)]
    for a, b in zip(*pairs, strict=True):
        if not isinstance(a, Tensor) or not a.is_floating_point() or not a.numel():
            continue
        error, most = float((a - b).abs().max()), float(a.abs().max())
        noise, signal = float(((a - b) ** 2).mean()), float(a.var(correction=0))
        low = 10 * math.log10(signal / noise) if noise and signal else math.inf
        if (precision == "fp32" and not error <= TOLERANCE * most) or (precision == "int8" and not low >= SNR_DB):
            raise SurgeryError(
                f"the packed network differs from the model by up to {error:.3g} on outputs of up to {most:.3g} "
                f"({low:.1f} dB); it is not given out. Keep such layers dense, or report it"
            )
