"""Whole networks with 80 % of their weights zero in blocks, exported, against the dense ones; see sparse.py."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

import paretoprune as pp
from paretoprune.core.graph import Example
from paretoprune.pipeline.targets import find_target
from paretoprune.targets import Clock, Timing, maker
from paretoprune.targets.feeds import feed_of
from paretoprune.targets.latency import Comparison, Make, compare_fresh
from runtime_networks import network

SHARE = 0.8
DENSE = {"ResNet-50": ("conv1.weight", "fc.weight"), "BERT-small": ("*embedding*", "*classifier*", "*pooler*")}
"""The first convolution, the classifier and embeddings stay dense, as usual."""
GOAL = 3.0


def rows(names: list[str] | None, timing: Timing) -> Iterator[dict[str, Any]]:
    for name, ignore in DENSE.items():
        if not names or any(part in name for part in names):
            yield from _of(name, ignore, timing)


def _of(name: str, ignore: tuple[str, ...], timing: Timing) -> Iterator[dict[str, Any]]:
    net = network(name)
    feed = feed_of(Example.of(net.example[:1]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dense = {
            (runtime, how): _made(runtime, how, net.model, net, folder / f"{runtime}-{how}.onnx", feed)
            for runtime in ("onnxruntime", "openvino")
            for how in ("fp32", "int8")
        }
        for precision, pattern in (("fp32", "16x1"), ("int8", "16x4")):
            model = pp.sparsify(net.model, net.example, pattern=pattern, sparsity=SHARE, ignore=ignore).model
            file = folder / f"sparse-{precision}.onnx"
            make = _made("sparse-cpu", precision, model, net, file, feed)
            about = {
                "network": name,
                "runs on": "sparse-cpu",
                "precision": precision,
                "pattern": pattern,
                "zeros": zeros(model),
                "size_bytes": file.stat().st_size,
                "dense_size_bytes": (folder / "onnxruntime-fp32.onnx").stat().st_size,
                "packed_layers": _packed(file),
            }
            for runtime, with_precision in dense:
                goal = GOAL if (runtime, with_precision) == ("onnxruntime", "fp32") else None
                pair = compare_fresh(dense[runtime, with_precision], make, timing)
                yield about | _row(f"{runtime} {with_precision}", pair, goal)
            if precision == "fp32":
                inside = _made("openvino-sparse", precision, model, net, folder / "inside.onnx", feed)
                about |= {"runs on": "openvino-sparse", "packed_layers": _packed(folder / "inside.onnx")}
                for runtime in ("onnxruntime", "openvino"):
                    pair = compare_fresh(dense[runtime, "fp32"], inside, timing)
                    yield about | _row(f"{runtime} fp32", pair, GOAL if runtime == "onnxruntime" else None)


def _made(runtime: str, precision: str, model: nn.Module, net: Any, file: Path, feed: Mapping[str, Any]) -> Make:
    calibration = None if precision == "fp32" else net.calibration
    target = find_target(runtime)
    pp.export(model, net.example, file, target, precision, calibration)
    return maker(target, file, feed)


def _row(against: str, pair: Comparison, goal: float | None) -> dict[str, Any]:
    row = {
        "against": against,
        "speedup": pair.ratio.to_json(),
        "dense_ms": pair.a.latency_ms.to_json(),
        "ms": pair.b.latency_ms.to_json(),
        "raw": {
            "dense_cpu_ms": [float(f"{v:.4g}") for v in pair.a.samples.cpu_ms],
            "cpu_ms": [float(f"{v:.4g}") for v in pair.b.samples.cpu_ms],
        },
    }
    return row | ({} if goal is None else {"goal": goal})


def zeros(model: nn.Module) -> float:
    """Share of zeros in the weights of layers that hold some."""
    weights = [p for p in model.parameters() if p.ndim > 1 and float((p == 0).float().mean()) > 0.5]
    return sum(int((p == 0).sum()) for p in weights) / max(1, sum(p.numel() for p in weights))


def _packed(file: Path) -> int:
    import onnx

    return sum(n.domain == "paretoprune" for n in onnx.load(str(file)).graph.node)


def usual() -> Timing:
    return Timing(pairs=20, max_pairs=60, max_cpu_s=20, margin=0.05, clock=Clock(cpu_ns=time.thread_time_ns))
