"""One network on every target of a machine with an NVIDIA GPU, beside ONNX Runtime on its CPU.

    .venv/bin/python benchmarks/gpu/targets.py [--image 224] [--width 64]

A small residual network, and the same with half of its channels, are exported for each target that can be made here,
checked, and timed in turns (batch 1). Prints milliseconds, how many times faster the narrow one is, with 95 %
intervals, and why a target was left out; writes benchmarks/results/gpu-targets.json.

Not run on a GPU so far: none was at hand. Tried without one, where the GPU's targets are left out with their reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import paretoprune as pp
from paretoprune.core.graph import Example
from paretoprune.pipeline.targets import find_target
from paretoprune.targets import Timing, measure_file
from paretoprune.targets.feeds import feed_of
from paretoprune.targets.traits import describe, suffix_of, timing_for

RESULT = Path(__file__).parents[1] / "results" / "gpu-targets.json"
NAMES = ("onnxruntime", "cuda", "onnxruntime-cuda", "onnxruntime-tensorrt")
SHOWN = ("baseline_latency_ms", "latency_ms", "speedup", "wall_ms", "energy_mj", "size_bytes")


class Block(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(outer, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, outer, 3, padding=1, bias=False),
            nn.BatchNorm2d(outer),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.layers(x))


def network(inner: int, outer: int) -> nn.Module:
    torch.manual_seed(0)
    stem = (nn.Conv2d(3, outer, 7, stride=4, padding=3), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(outer, 10))
    return nn.Sequential(*stem, *(Block(inner, outer) for _ in range(4)), *head).eval()


def measured(name: str, wide: nn.Module, narrow: nn.Module, example: Example, folder: Path) -> dict[str, Any]:
    """Figures by precision, or why there are none."""
    try:
        target = find_target(name)
    except pp.errors.PruneError as error:
        return {"left out": str(error)}
    rows: dict[str, Any] = {"settings": dict(describe(target)), "fingerprint": dict(target.fingerprint())}
    for precision in target.precisions:
        if precision == "int8":
            continue
        try:
            files = [
                target.export(module, example, folder / f"{name}-{precision}-{part}{suffix_of(target)}", precision)
                for module, part in ((wide, "wide"), (narrow, "narrow"))
            ]
            timing: Timing = timing_for(target, max_cpu_s=10.0)
            found = measure_file(target, files[1], feed_of(example), files[0], timing=timing)
            rows[precision] = {key: found[key].to_json() for key in SHOWN if key in found}
        except pp.errors.PruneError as error:
            rows[precision] = {"failed": str(error)}
    return rows


def show(name: str, rows: dict[str, Any]) -> None:
    if "left out" in rows:
        print(f"{name}: left out: {rows['left out']}")
        return
    for precision, row in rows.items():
        if "failed" in row:
            print(f"{name} {precision}: {row['failed']}")
        elif "latency_ms" in row:
            wide, narrow, ratio = (row[key] for key in ("baseline_latency_ms", "latency_ms", "speedup"))
            interval = f"({ratio['low']:.2f} to {ratio['high']:.2f})"
            halved = f"half the inner channels {narrow['value']:.3f} ms: {ratio['value']:.2f}x {interval}"
            print(f"{name} {precision}: {wide['value']:.3f} ms, {halved}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=int, default=224)
    parser.add_argument("--width", type=int, default=64)
    given = parser.parse_args()
    example = Example.of(torch.randn(1, 3, given.image, given.image, generator=torch.Generator().manual_seed(0)))
    wide, narrow = network(given.width, given.width), network(given.width // 2, given.width)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            found[name] = measured(name, wide, narrow, example, Path(folder))
            show(name, found[name])
    if all("left out" in found[name] for name in NAMES[1:]):
        print("no target of a GPU: nothing was written", file=sys.stderr)
        return 2
    RESULT.write_text(json.dumps({"torch": torch.__version__, "targets": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
