"""What pruning and int8 bring on real runtimes, whether ties tie, and what peers reach. All ratios, all in one run.

    PARETOPRUNE_DATA=/path/to/data .venv/bin/python benchmarks/targets.py [--parts speed ...] [--networks ResNet-18 ...]

speed     half of all channels (axes="all"), in steps of the target and not: the measured speed-up over the ideal one
          (fewer MACs); int8 of both and of the whole network over dense fp32 in the same runtime.
energy    the two estimates of the same files (or a counter's figure where there is one).
accuracy  the int8 file on real data: SqueezeNet on 1,000 ImageNet images, ResNet-20 on CIFAR-10 as JPEG.
cost      of benchmarks/cost_model.py, on ResNet-56: the cost model on networks that it has not seen, CPU seconds per
          measured candidate; beside a noisy neighbour, how many of 50 comparisons of identical files are called faster,
          and how often a true 5 % is found.
peers     the same networks as users of NNCF, Olive and Torch-Pruning with torch.onnx would treat them.

One thread, batch 1, CPU time of the calling thread, pairs interleaved (docs/decisions/0005). Rows go to
benchmarks/results/targets.json one by one with their samples; a second run goes on with it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.core.errors import PruneError
from paretoprune.core.graph import Example
from paretoprune.core.protocols import Target
from paretoprune.targets import (
    Clock,
    Comparison,
    CostTable,
    Timing,
    compare_files,
    find_target,
    macs_of_file,
    measure_file,
    staircase,
)
from paretoprune.targets.feeds import feed_of
from runtime_networks import NETWORKS, network
from scale import commit

RESULT = Path(__file__).parent / "results" / "targets.json"
RUNTIMES = ("onnxruntime", "openvino")
RATIO, ODD_RATIO = 0.5, 0.47
"""Of the channels that go. The second leaves widths that are no multiple of any step."""


def timing(max_cpu_s: float = 8.0, pairs: int = 20) -> Timing:
    return Timing(pairs=pairs, max_pairs=200, max_cpu_s=max_cpu_s, clock=Clock(cpu_ns=time.thread_time_ns))


def paired(target: Target, a: Path, b: Path, example: Tensor, how: Timing) -> Comparison:
    return compare_files(target, a, b, feed_of(Example.of(example[:1])), how)


def samples(pair: Comparison) -> dict[str, Any]:
    """Of both, CPU milliseconds in the order they were taken, to four digits."""
    both = {"baseline_cpu_ms": pair.a.samples.cpu_ms, "cpu_ms": pair.b.samples.cpu_ms}
    return {key: [float(f"{v:.4g}") for v in values] for key, values in both.items()}


# -- speed and energy -------------------------------------------------------------------------------------------------


def speed(given: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    for runtime in given.runtimes:
        target = find_target(runtime)
        step = staircase(CostTable(target)).step
        for name in given.networks:
            if f"speed {runtime} {name}" not in done:
                yield from speed_of(name, runtime, target, step)


def speed_of(name: str, runtime: str, target: Target, step: int) -> Iterator[dict[str, Any]]:
    net = network(name)
    model, example, calibration = net.model, net.example, net.calibration
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dense = pp.export(model, example, folder / "dense.onnx", target=runtime)
        shapes = {"input": (1, *example.shape[1:])}
        whole = pp.trace(model, example).macs()
        cuts = {
            "aligned": {"ratio": RATIO, "align": step},
            "unaligned": {"ratio": ODD_RATIO, "align": 1},
        }
        pruned = {way: pp.prune(model, example, axes="all", **how) for way, how in cuts.items()}
        jobs = [("dense", "int8", model)]
        jobs += [(way, "fp32", p) for way, p in pruned.items()] + [("aligned", "int8", pruned["aligned"])]
        for way, precision, what in jobs:
            row: dict[str, Any] = {
                "part": "speed", "key": f"speed {runtime} {name}", "network": name, "runtime": runtime, "way": way,
                "precision": precision, "step": step,
                "ideal": whole / what.macs if not isinstance(what, nn.Module) else 1.0,
                "macs_of_file": macs_of_file(dense, shapes),
            }  # fmt: skip
            try:
                file = pp.export(what, example, folder / f"{way}-{precision}.onnx", runtime, precision, calibration)
                pair = paired(target, dense, file, example, timing())
            except PruneError as error:
                yield row | {"refused": str(error)[:300]}
                continue
            brief = Timing(pairs=10, max_pairs=20, max_cpu_s=2.0, clock=Clock(cpu_ns=time.thread_time_ns))
            figures = measure_file(target, file, feed_of(Example.of(example[:1])), timing=brief)
            yield row | {
                "speedup": pair.ratio.to_json(), "baseline_ms": pair.a.latency_ms.to_json(),
                "ms": pair.b.latency_ms.to_json(), "achieved_over_ideal": pair.ratio.value / row["ideal"],
                "size_bytes": file.stat().st_size, "baseline_bytes": dense.stat().st_size,
                "energy": {k: m.to_json() for k, m in figures.items() if "energy" in k or k in ("power_w", "fps")},
                "raw": samples(pair),
            }  # fmt: skip


# -- accuracy of int8 -------------------------------------------------------------------------------------------------


def accuracy(given: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    from runtime_data import DATA

    for name, read in DATA.items():
        for runtime in given.runtimes:
            key = f"accuracy {runtime} {name}"
            if key in done:
                continue
            data, target = read(), find_target(runtime)
            row: dict[str, Any] = {"part": "accuracy", "key": key, "network": name, "runtime": runtime}
            with tempfile.TemporaryDirectory() as temporary:
                for precision in ("fp32", "int8"):
                    file = Path(temporary) / f"{precision}.onnx"
                    pp.export(data.model, data.example, file, runtime, precision, data.calibration)
                    found = pp.evaluate(file, data.test, metrics=["accuracy"], target=runtime)["accuracy"]
                    row[precision] = found.to_json()
                row["speedup"] = paired(
                    target, Path(temporary) / "fp32.onnx", Path(temporary) / "int8.onnx", data.example, timing(5.0)
                ).ratio.to_json()
            yield row | {"drop_points": 100 * (row["fp32"]["value"] - row["int8"]["value"])}


# -- the cost model, ties and true differences ------------------------------------------------------------------------


def cost(given: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    import cost_model

    with tempfile.TemporaryDirectory() as temporary:
        bench = None
        for name, part in cost_model.PARTS.items():
            if f"cost {name}" not in done:
                bench = bench or cost_model.Bench(cost_model.traced_network(), cost_model.TARGET, Path(temporary))
                found = part(bench)
                yield {
                    "part": "cost",
                    "key": f"cost {name}",
                    **{k: v for k, v in found.items() if k != "rows"},
                    "raw": found,
                }


# -- peers ------------------------------------------------------------------------------------------------------------


def peers(given: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    from runtime_peers import rows

    yield from rows(given, done, paired, timing, samples)


PARTS: Mapping[str, Callable[[argparse.Namespace, set[str]], Iterator[dict[str, Any]]]] = {
    "speed": speed,
    "accuracy": accuracy,
    "cost": cost,
    "peers": peers,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    options.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    options.add_argument("--runtimes", nargs="+", default=list(RUNTIMES))
    options.add_argument("--result", type=Path, default=RESULT)
    given = options.parse_args()
    torch.set_num_threads(1)
    result = json.loads(given.result.read_text()) if given.result.exists() else {"commands": [], "rows": []}
    result["commands"].append(" ".join(["python", *sys.argv]))
    about = {"commit": commit(), "machine": {r: dict(find_target(r).fingerprint()) for r in given.runtimes}}
    for part in given.parts:
        done = {row["key"] for row in result["rows"]}
        for row in PARTS[part](given, done):
            result["rows"].append(row | about)
            given.result.write_text(json.dumps(result) + "\n")
            print(json.dumps({k: v for k, v in row.items() if k not in ("raw", "energy")}), flush=True)


if __name__ == "__main__":
    main()
