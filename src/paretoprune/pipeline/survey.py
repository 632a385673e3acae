"""What `inspect` tells of a network: its axes, what each controls, its layers and what cannot be pruned."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from paretoprune import graph as graphs
from paretoprune.core.axis import Axis
from paretoprune.core.layers import LayerSpec
from paretoprune.core.progress import NoProgress, Progress
from paretoprune.graph import TracedGraph
from paretoprune.pipeline.opening import Network, name_of, opened
from paretoprune.pipeline.targets import find_target
from paretoprune.targets import CostTable, staircase


@dataclass(frozen=True)
class AxisFacts:
    """`parameters` and `macs`: those of every tensor and layer that the axis takes part in, as counts of one sample."""

    id: str
    size: int
    kind: str
    prunable: bool
    why: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class LayerFacts:
    """`ms`: one such layer alone on the target, measured; None where that was not asked for."""

    layer: str
    macs: int
    ms: float | None = None


@dataclass(frozen=True)
class BlockFacts:
    """A residual block; `parameters` and `macs` go with it when it is dropped, `why` it cannot be if so."""

    name: str
    removable: bool
    why: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class Survey:
    """`macs` and `parameters` are the network's."""

    model: str
    parameters: int
    macs: int
    axes: tuple[AxisFacts, ...]
    layers: tuple[LayerFacts, ...]
    notes: tuple[str, ...]
    blocks: tuple[BlockFacts, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def survey(model: Network, example: Any, *, time_on: str | None = None, progress: Progress | None = None) -> Survey:
    """Trace `model`. `time_on`: a target on which every layer is also timed alone. Raises ModelError and others."""
    model = opened(model, example)
    graphs.check_model(model)
    traced = graphs.trace(model, example)
    parameters, macs = traced.parameters(), traced.macs()
    axes = tuple(_axis(traced, axis, parameters, macs) for axis in traced.axes)
    table = None if time_on is None else CostTable.cached(find_target(time_on))
    layers = _layers(traced, table, progress or NoProgress())
    steps = () if table is None else _steps(traced, table)
    blocks = tuple(BlockFacts(b.name, b.removable, b.why, b.parameters, b.macs) for b in traced.blocks)
    return Survey(name_of(model), parameters, macs, axes, layers, (*traced.notes, *steps), blocks)


def _axis(traced: TracedGraph, axis: Axis, parameters: int, macs: int) -> AxisFacts:
    """A width of zero takes away everything that the axis is part of."""
    gone = {axis.id: 0}
    return AxisFacts(
        axis.id,
        axis.size,
        axis.kind,
        axis.prunable,
        axis.why,
        parameters - traced.parameters(gone),
        macs - traced.macs(gone),
    )


def _steps(traced: TracedGraph, table: CostTable) -> tuple[str, ...]:
    """A sentence on the target's channel steps, for a network that has convolutions."""
    if not any(spec.kind == "conv" for spec in traced.layers()):
        return ()
    step = staircase(table).step
    table.keep()
    how = f"in steps of {step} channels: keep multiples of it" if step > 1 else "as well at any number of channels"
    return (f'{table.target.name} computes convolutions {how} (measured here; align="auto" does so)',)


def _layers(traced: TracedGraph, table: CostTable | None, progress: Progress) -> tuple[LayerFacts, ...]:
    specs = traced.layers()
    with progress.stage("layers", len(specs)) as bar:
        found = []
        for spec in specs:
            ms = None if table is None else table.cost_ms(spec)
            found.append(LayerFacts(described(spec), macs_of(spec), ms))
            bar.advance()
    if table is not None:
        table.keep()
    return tuple(found)


def described(spec: LayerSpec) -> str:
    """ "conv 3x3 32→64 at 16x16", "linear 64→10"."""
    size = f"{spec.inputs}→{spec.outputs}"
    if spec.kind == "linear":
        return f"linear {size}" + (f" of {spec.rows} rows" if spec.rows > 1 else "")
    kernel, spatial = ("x".join(map(str, dims)) for dims in (spec.kernel, spec.spatial))
    stride = f" /{'x'.join(map(str, spec.stride))}" if max(spec.stride) > 1 else ""
    groups = f" in {spec.groups} groups" if spec.groups > 1 else ""
    return f"{spec.kind.replace('_', ' ')} {kernel}{stride} {size}{groups} at {spatial}"


def macs_of(spec: LayerSpec) -> int:
    """Multiply-accumulates of one layer at batch 1."""
    if spec.kind == "linear":
        return spec.rows * spec.inputs * spec.outputs
    if spec.kind == "conv_transpose":
        return prod(spec.spatial) * spec.inputs * prod(spec.weight_shape[1:])
    sizes = zip(spec.spatial, spec.kernel, spec.stride, spec.padding, spec.dilation, strict=True)
    positions = prod((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
    return positions * prod(spec.weight_shape)
