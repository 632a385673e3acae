"""`pp.pack`: a network whose layers with zeros run on the packed kernels, where that is faster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from paretoprune import graph as graphs
from paretoprune.core.data import split_batch
from paretoprune.core.errors import ModelError, SurgeryError, UsageError
from paretoprune.core.graph import Example
from paretoprune.sparsity import save_packed
from paretoprune.sparsity.kernels import End, Grid, choose
from paretoprune.sparsity.kernels.making import Layer, kernel_of
from paretoprune.sparsity.lowering import Site, lower, sites_of, watched
from paretoprune.sparsity.operators import window_of
from paretoprune.sparsity.parts import Weight
from paretoprune.sparsity.storing import sparsity_of, stored, stored_int8

Array = NDArray[np.float32]
Keep = Literal["measured", "all"]
MIN_SPARSITY = 0.05
"""A weight with fewer zeros is left dense without a race."""
RACES = 7
RACE_MS = 3.0
SNR_DB = 20.0
TOLERANCE = 1e-4
"""Largest error of a packed fp32 network, as a share of the largest output."""


@dataclass(frozen=True)
class Case:
    """One layer as it runs in the network: what it is given, and its kernel."""

    site: Site
    x: Array
    layer: Layer

    @property
    def outputs(self) -> Array:
        return self.layer(self.x)


Rival = Callable[[Case], Callable[[], Any]]
"""A call that runs the same layer densely on the same input."""


@dataclass(frozen=True)
class Choice:
    """What became of one layer. Times are CPU milliseconds, taken in turns; None where there was no race.

    `why` a layer is left dense; empty for a packed one.
    """

    weight: str
    pattern: str
    sparsity: float
    why: str = ""
    dense_ms: float | None = None
    packed_ms: float | None = None

    @property
    def packed(self) -> bool:
        return not self.why


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
) -> PackedNetwork:
    """The network with packed kernels for its linear layers and 2-d convolutions, fused with what follows them.

    Batch norms are folded first. Each layer is raced against its dense self on what `sample` (the example) gives it, on as many
    `threads` (as torch uses): the slower one goes, and `choices` says so; `keep="all"` packs whatever can be packed.
    `precision="int8"` needs `calibration` (batches) for the ranges of what layers are given; weights then have 8 bits,
    one scale for an output. `rival`: another dense runtime to race against. The result is compared with the model on
    the example. The model is not changed.

    Raises UsageError for other arguments, CaptureError and ModelError for the model, TargetError where the kernels were
    not compiled, SurgeryError where the outputs differ.
    """
    if keep not in ("measured", "all"):
        raise UsageError(f'keep={keep!r}: expected "measured" or "all"')
    if precision not in ("fp32", "int8"):
        raise UsageError(f'precision={precision!r}: the packed kernels compute in "fp32" or "int8"')
    if precision == "int8" and calibration is None:
        raise UsageError("int8 needs calibration batches to learn the ranges; give calibration=")
    choose()
    threads = threads or torch.get_num_threads()
    given = Example.of(example)
    captured, inputs = graphs.captured(model, given)
    module = graphs.fold_norms(captured)
    module.eval()
    module.requires_grad_(False)
    sites, left = sites_of(module)
    seen = _inputs(module, sites, inputs if sample is None else Example.of(sample))
    grids = _grids(module, sites, inputs, calibration or ()) if precision == "int8" else {}
    made = [_made(site, seen.get(site), grids.get(site), threads) for site in sites]
    results = [
        _raced(site, m, seen.get(site), keep, rival or _torch_layer, threads)
        for site, m in zip(sites, made, strict=True)
    ]
    chosen = {s: (m[0], m[1]) for s, m, c in zip(sites, made, results, strict=True) if m is not None and c.packed}
    lower(module, chosen)
    skipped = [Choice(name, "", 0.0, why) for name, why in left.items()]
    weights = {site.weight: weight for site, (weight, _) in chosen.items()}
    packed = PackedNetwork(module, [*results, *skipped], weights).eval()
    _check(captured, packed, inputs, precision)
    return packed


Made = tuple[Weight, tuple[float, ...], Layer]


def _inputs(module: fx.GraphModule, sites: Sequence[Site], example: Example) -> dict[Site, Array]:
    """What each layer is given on the example, the first time that it runs."""
    seen: dict[Site, Array] = {}

    def see(site: Site, x: Tensor) -> None:
        if x.dtype == torch.float32:
            seen.setdefault(site, np.ascontiguousarray(x.detach().cpu().numpy()))

    with watched(module, sites, see):
        module(*example.args, **example.kwargs)
    return seen


def _grids(module: fx.GraphModule, sites: Sequence[Site], example: Example, batches: Iterable[Any]) -> dict[Site, Grid]:
    """From smallest to largest value of all batches, zero included."""
    low, high = dict.fromkeys(sites, 0.0), dict.fromkeys(sites, 0.0)

    def see(site: Site, x: Tensor) -> None:
        low[site], high[site] = min(low[site], float(x.min())), max(high[site], float(x.max()))

    with watched(module, sites, see):
        for batch in batches:
            inputs = batch if isinstance(batch, Example) else split_batch(batch)[0]
            module(*inputs.args, **inputs.kwargs)
    if any(not math.isfinite(v) for v in (*low.values(), *high.values())):
        raise ModelError("a layer is given values that are not finite on the calibration batches")
    scales = {site: (high[site] - low[site]) / 255 or 1.0 for site in sites}
    return {site: Grid(scale, int(np.clip(round(-low[site] / scale), 0, 255))) for site, scale in scales.items()}


def _made(site: Site, x: Array | None, grid: Grid | None, threads: int) -> Made | None:
    """None for a layer that computes no float32, or holds hardly a zero."""
    if x is None:
        return None
    weight = stored(site.value) if grid is None else stored_int8(site.value)
    window = window_of(site.stride, site.padding) if site.image else None
    layer = kernel_of(weight, End(site.bias), window, grid, threads)
    return weight, () if grid is None else (grid.scale, float(grid.zero)), layer


def _raced(site: Site, made: Made | None, x: Array | None, keep: Keep, rival: Rival, threads: int) -> Choice:
    if made is None or x is None:
        return Choice(site.weight, "", 0.0, "it is not reached, or not given float32")
    weight, grid, layer = made
    choice = Choice(site.weight, str(getattr(weight, "pattern", "signs")), sparsity_of(weight))
    if keep == "all":
        return choice
    zeros = float((site.value == 0).mean())
    if choice.sparsity < MIN_SPARSITY and not grid and choice.pattern != "signs":
        return replace(choice, why=f"{zeros:.0%} of its weights are zeros, in no blocks that can be left out")
    dense, packed = race(rival(Case(site, x, layer)), lambda: layer(x), threads)
    why = "" if packed < dense else "the dense layer is as fast"
    return replace(choice, why=why, dense_ms=dense, packed_ms=packed)


def race(one: Callable[[], Any], other: Callable[[], Any], threads: int = 1) -> tuple[float, float]:
    """Smallest milliseconds per call of each, taken in turns."""
    calls = [max(1, math.ceil(RACE_MS / max(1e-3, _ms(call, 1, threads)))) for call in (one, other)]
    taken = [(_ms(one, calls[0], threads), _ms(other, calls[1], threads)) for _ in range(RACES)]
    return min(a for a, _ in taken), min(b for _, b in taken)


def _ms(call: Callable[[], Any], times: int, threads: int) -> float:
    clock = time.process_time_ns if threads == 1 else time.perf_counter_ns
    call()
    begun = clock()
    for _ in range(times):
        call()
    return (clock() - begun) / times / 1e6


def _torch_layer(case: Case) -> Callable[[], Any]:
    site = case.site
    x, weight = torch.from_numpy(case.x), torch.from_numpy(site.value)
    bias = None if site.bias is None else torch.from_numpy(site.bias)

    def run() -> Tensor:
        with torch.no_grad():
            if site.image:
                return functional.conv2d(x, weight, bias, site.stride, site.padding)
            return functional.linear(x, weight, bias)

    return run


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
