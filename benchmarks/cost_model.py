"""What a candidate costs to measure, what the cost model is worth, and what a comparison of two files is worth.

    PARETOPRUNE_DATA=/path/to/data .venv/bin/python benchmarks/cost_model.py

ResNet-56 for CIFAR, on ONNX Runtime in fp32. The model is fitted to four networks, as in a search, and asked about 20
that it has not seen: random widths in the steps of the target, from near the cheapest to near the original, timed for
longer than a search does. Candidates are exported from a template and timed as in a search, with the CPU seconds of
each stage. Identical files are compared 50 times beside a process that works in bursts; a true difference of 5 % is the
same file, each run of which is drawn out until 5 % more of CPU time has gone. Writes benchmarks/results/cost_model.json
with every sample; exits with 1 if a claim does not hold.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from cifar10 import ResNet  # noqa: E402

import paretoprune as pp  # noqa: E402
from paretoprune import graph as graphs  # noqa: E402
from paretoprune.core.graph import Example  # noqa: E402
from paretoprune.core.plan import Plan  # noqa: E402
from paretoprune.graph import TracedGraph  # noqa: E402
from paretoprune.pipeline import artefact, choose, cost_model, space  # noqa: E402
from paretoprune.targets import (  # noqa: E402
    Comparison,
    CostTable,
    OnnxRuntime,
    Timing,
    compare_files,
    compare_fresh,
    fingerprint_id,
    maker,
    staircase,
)
from paretoprune.targets.correction import Correction, fitted  # noqa: E402
from paretoprune.targets.feeds import feed_of  # noqa: E402
from paretoprune.targets.template import Templates  # noqa: E402

TARGET = OnnxRuntime()
RESULT = ROOT / "benchmarks" / "results" / "cost_model.json"
UNSEEN, REPEATS, TRUE_REPEATS = 20, 50, 20
Widths = Mapping[str, int]


def comparison() -> Timing:
    """Two files in less than a CPU second."""
    return replace(artefact.timing(TARGET), max_cpu_s=0.95)


def main() -> None:
    torch.set_num_threads(1)
    target = TARGET
    with tempfile.TemporaryDirectory() as place:
        folder, traced = Path(place), traced_network()
        bench = Bench(traced, target, folder)
        result = {
            "command": " ".join([Path(sys.executable).name, *sys.argv]),
            "commit": commit(),
            "machine": dict(target.fingerprint()),
            "machine_id": fingerprint_id(target.fingerprint()),
            **{name: part(bench) for name, part in PARTS.items()},
        }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {RESULT}")
    sys.exit(verdict(result))


def traced_network() -> TracedGraph:
    model = ResNet(9)
    model.load_state_dict(load_file(Path(os.environ["PARETOPRUNE_DATA"]) / "cifar10jpeg_resnet56.safetensors"))
    return pp.trace(model.eval(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


class Bench:
    """A network, its files, and its widths in steps of the target."""

    def __init__(self, traced: TracedGraph, target: OnnxRuntime, folder: Path) -> None:
        self.traced, self.target, self.folder = traced, target, folder
        self.templates = Templates()
        self.exporter = target.cutting(self.templates)
        self.one = Example.of(traced.example.args[0][:1])
        self.feed = feed_of(self.one)
        self.table = CostTable.cached(target)
        self.step = staircase(self.table).step
        axes = choose.chosen_axes(traced, "inner", ())
        self.sizes = {a.id: a.size for a in axes}
        self.widths = {a.id: space._widths(a, self.step, 1) for a in axes}
        self.original = self.exporter.export(traced.program.module, self.one, folder / "original.onnx")

    def file(self, name: str, widths: Widths) -> Path:
        return self.exporter.export(self.network(widths), self.one, self.folder / f"{name}.onnx")

    def network(self, widths: Widths) -> nn.Module:
        plan = Plan({a: tuple(range(w)) for a, w in widths.items() if w < self.sizes[a]})
        return graphs.cut(self.traced, plan).program.module

    def against_original(self, file: Path, timing: Timing) -> Comparison:
        return compare_files(self.target, self.original, file, self.feed, timing)


def model_error(bench: Bench) -> dict[str, Any]:
    """Fitted as in a search; then asked about members that it has not seen."""
    quick, steady = (
        artefact.timing(TARGET),
        replace(artefact.longer(artefact.timing(TARGET)), margin=0.02, max_cpu_s=2.0),
    )
    plain = cost_model.CostModel(bench.traced, bench.table, ("fp32",), {})
    begun = time.process_time()
    known = [_row(bench, plain, f"known{i}", w, quick) for i, w in enumerate(cost_model.members(bench.widths, 0))]
    fit = fitted(*([float(r[key]) for r in known] for key in ("layers", "elements", "measured")))
    spent = time.process_time() - begun
    bench.table.keep()
    rng = np.random.default_rng(1)
    unseen = []
    for i in range(UNSEEN):
        level = (i + 0.5) / UNSEEN
        widths = {a: cost_model.random_width(rng, every, level) for a, every in bench.widths.items()}
        row = _row(bench, plain, f"unseen{i}", widths, steady)
        unseen.append({**row, "predicted": fit.share(row["layers"], row["elements"]), "widths": widths})
    errors = [abs(r["predicted"] / r["measured"] - 1) for r in unseen]
    return {
        "step": bench.step,
        "correction": fit.to_json(),
        "fit_cpu_s": spent,
        "median_error": float(np.median(errors)),
        "largest_error": max(errors),
        "spearman": float(spearmanr([r["predicted"] for r in unseen], [r["measured"] for r in unseen])[0]),
        "without_correction": _median_error(unseen),
        "known": known,
        "unseen": unseen,
    }


def _median_error(rows: list[dict[str, Any]]) -> float:
    plain = Correction()
    return float(np.median([abs(plain.share(r["layers"], r["elements"]) / r["measured"] - 1) for r in rows]))


def _row(bench: Bench, plain: cost_model.CostModel, name: str, widths: Widths, timing: Timing) -> dict[str, Any]:
    pair = bench.against_original(bench.file(name, widths), timing)
    layers = plain.share_in("fp32", widths)
    assert layers is not None
    return {
        "layers": layers,
        "elements": cost_model.elements_share(bench.traced, widths),
        "measured": 1 / pair.ratio.value,
        "low": 1 / pair.ratio.high,
        "high": 1 / pair.ratio.low,
        **_samples(pair),
    }


def _samples(pair: Comparison) -> dict[str, Any]:
    return {
        "original_cpu_ms": np.round(pair.a.samples.cpu_ms, 4).tolist(),
        "cpu_ms": np.round(pair.b.samples.cpu_ms, 4).tolist(),
    }


def candidate_seconds(bench: Bench, count: int = 10) -> dict[str, Any]:
    """CPU seconds of a candidate, from a network to its latency; surgery and recovery come before that."""
    rng, rows = np.random.default_rng(2), []
    for i in range(count):
        network = bench.network({a: cost_model.random_width(rng, every, 0.5) for a, every in bench.widths.items()})
        marks = [time.process_time()]
        file = bench.exporter.export(network, bench.one, bench.folder / f"candidate{i}.onnx")
        marks.append(time.process_time())
        pair = bench.against_original(file, artefact.timing(TARGET))
        marks.append(time.process_time())
        full = bench.target.export(network, bench.one, bench.folder / "full.onnx")
        marks.append(time.process_time())
        export, timing, whole = np.diff(marks)
        rows.append(
            {
                "export_and_verify_s": float(export),
                "timing_s": float(timing),
                "full_export_and_verify_s": float(whole),
                "cut": not bench.templates.why,
                "same_as_full_export": _content(file) == _content(full),
                "interval": [pair.ratio.low, pair.ratio.high],
                "pairs": pair.ratio.runs,
            }
        )
    total = [r["export_and_verify_s"] + r["timing_s"] for r in rows]
    return {"median_cpu_s": float(np.median(total)), "largest_cpu_s": max(total), "rows": rows}


def _content(file: Path) -> tuple[Any, Any]:
    graph = onnx.load(str(file)).graph
    return list(graph.node), sorted((t.name, tuple(t.dims), t.raw_data) for t in graph.initializer)


def ties(bench: Bench) -> dict[str, Any]:
    """A file against a copy of itself. "Faster" and "slower" are what its interval says wrongly."""
    copy = bench.folder / "copy.onnx"
    copy.write_bytes(bench.original.read_bytes())
    with neighbour():
        rows = [_compared(lambda: bench.against_original(copy, comparison())) for _ in range(REPEATS)]
    return _summary(rows)


def true_difference(bench: Bench) -> dict[str, Any]:
    """A file that takes 5 % more CPU time in every single run, against itself without that."""

    def slower() -> Callable[[], None]:
        runner, now = bench.target.load(bench.original), time.thread_time_ns

        def work() -> None:
            begun = now()
            runner(bench.feed)
            until = begun + int(1.05 * (now() - begun))
            while now() < until:
                pass

        return work

    def once() -> Comparison:
        return compare_fresh(slower, maker(bench.target, bench.original, bench.feed), comparison())

    with neighbour():
        return _summary([_compared(once) for _ in range(TRUE_REPEATS)])


PARTS: Mapping[str, Callable[[Bench], dict[str, Any]]] = {
    "cost_model": model_error,
    "candidate": candidate_seconds,
    "ties": ties,
    "true_difference": true_difference,
}


def _compared(once: Callable[[], Comparison]) -> dict[str, Any]:
    begun = time.process_time()
    pair = once()
    ratio = pair.ratio
    spent = {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "cpu_s": time.process_time() - begun}
    return {**spent, "latency_ms": pair.b.latency_ms.value, **_samples(pair)}


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "faster": sum(r["low"] > 1 for r in rows) / len(rows),
        "slower": sum(r["high"] < 1 for r in rows) / len(rows),
        "largest_cpu_s": max(r["cpu_s"] for r in rows),
        "largest_latency_ms": max(r["latency_ms"] for r in rows),
        "rows": rows,
    }


@contextmanager
def neighbour() -> Iterator[None]:
    """Another process that multiplies matrices for 50 ms and rests for as long, at random."""
    process = multiprocessing.get_context("spawn").Process(target=_noise, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _noise() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((256, 256))
    while True:
        until = time.perf_counter() + rng.exponential(0.05)
        while time.perf_counter() < until:
            matrix @ matrix
        time.sleep(rng.exponential(0.05))


def commit() -> str:
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(git, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()


def verdict(result: Mapping[str, Any]) -> int:
    """0 if every claim was seen."""
    model, candidate, same, five = (result[k] for k in ("cost_model", "candidate", "ties", "true_difference"))
    claims = {
        f"cost model: median error {model['median_error']:.1%} on {UNSEEN} unseen members, at most 4 % "
        f"(it says {model['correction']['error']:.1%} of itself; layers alone {model['without_correction']:.1%})": (
            model["median_error"] <= 0.04
        ),
        f"cost model: Spearman {model['spearman']:.3f}, at least 0.95": model["spearman"] >= 0.95,
        f"a candidate takes {candidate['median_cpu_s']:.2f} CPU s (median), at most 0.6": (
            candidate["median_cpu_s"] <= 0.6
        ),
        "each of their files is that of a full export": all(
            r["cut"] and r["same_as_full_export"] for r in candidate["rows"]
        ),
        f"identical files: {same['faster']:.0%} faster, {same['slower']:.0%} slower of {REPEATS}; at most 5 %": (
            max(same["faster"], same["slower"]) <= 0.05
        ),
        f"a true 5 %: found in {five['faster']:.0%} of {TRUE_REPEATS}, at least 95 %": five["faster"] >= 0.95,
        f"in at most {five['largest_cpu_s']:.2f} CPU s each, at most 1": five["largest_cpu_s"] <= 1,
    }
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    main()
