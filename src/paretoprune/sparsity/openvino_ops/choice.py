"""Which layers are faster sparse, by measurement in the runtime that runs them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from paretoprune.sparsity.openvino_ops.build import openvino
from paretoprune.sparsity.openvino_ops.replace import Replaced, replace
from paretoprune.sparsity.packing import Packed

ROUNDS = 10
"""Of each network, in turns; of a layer's times the shortest counts, to which other work on the machine adds least."""

MARGINS = (1.0, 1.5, 2.0)
"""A layer becomes dense where that is so many times as fast. It needs a gain: images between it and its sparse
neighbours are laid out anew, and what was fused may come apart. Which margin is best, whole networks tell."""

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Choice:
    """`layers`: by node, milliseconds of the dense and of the sparse layer with what is fused, each in its network.

    `networks`: milliseconds of the whole network: "dense", "all" packed layers, and without those beyond each margin.
    `best` is the fastest of them; `weights`: those that it computes with packed.
    """

    best: Replaced
    weights: tuple[str, ...]
    layers: Mapping[str, tuple[float, float]]
    networks: Mapping[str, float]


def choose(
    model: Any,
    weights: Mapping[str, Packed],
    feed: Feed,
    threads: int = 1,
    instruction_set: str | None = None,
    rounds: int = ROUNDS,
) -> Choice:
    """`model` with those packed layers that run faster than dense ones on `feed`; see `replace`."""

    def made(given: Mapping[str, Packed]) -> Replaced:
        return replace(model, given, threads, instruction_set)

    everything = made(weights)
    layers = _layer_times(everything, model, feed, threads, rounds)
    sets = {"dense": (), "all": tuple(weights)}
    for margin in MARGINS:
        slow = {name for name, (dense, sparse) in layers.items() if sparse > margin * dense}
        kept = tuple(key for key in weights if not slow.intersection(everything.nodes[key]))
        if kept not in sets.values():
            sets[f"margin {margin:g}"] = kept
    candidates = {name: made({key: weights[key] for key in keys}) for name, keys in sets.items()}
    networks = _network_times({name: each.model for name, each in candidates.items()}, feed, threads, rounds)
    best = min(networks, key=networks.__getitem__)
    return Choice(candidates[best], sets[best], layers, networks)


def _layer_times(
    everything: Replaced, model: Any, feed: Feed, threads: int, rounds: int
) -> dict[str, tuple[float, float]]:
    requests = [_request(each, threads, counting=True) for each in (model, everything.model)]
    times: list[dict[str, list[float]]] = [defaultdict(list) for _ in requests]
    for _ in range(rounds):
        for request, seen in zip(requests, times, strict=True):
            request.infer(feed, share_inputs=True)
            for entry in request.profiling_info:
                seen[entry.node_name].append(1e3 * entry.real_time.total_seconds())
    return {
        layer: (_shortest(times[0], names), _shortest(times[1], names)) for layer, names in everything.layers.items()
    }


def _shortest(seen: Mapping[str, Sequence[float]], names: Sequence[str]) -> float:
    """Of a layer that the runtime keeps as one node or as several, under names of what went into them."""
    return sum(min(seen[name]) for name in names if name in seen)


def _network_times(models: Mapping[str, Any], feed: Feed, threads: int, rounds: int) -> dict[str, float]:
    requests = {name: _request(model, threads) for name, model in models.items()}
    times: dict[str, list[float]] = defaultdict(list)
    clock = time.thread_time if threads == 1 else time.perf_counter
    for _ in range(rounds):
        for name, request in requests.items():
            start = clock()
            request.infer(feed, share_inputs=True)
            times[name].append(1e3 * (clock() - start))
    return {name: min(each) for name, each in times.items()}


def _request(model: Any, threads: int, counting: bool = False) -> Any:
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "PERF_COUNT": counting,
    }
    return openvino().Core().compile_model(model, "CPU", settings).create_infer_request()
