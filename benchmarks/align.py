"""A narrower network that is slower than the original is never on the front: widths 63 and 48 of a layer of 64.

    .venv/bin/python benchmarks/align.py [--pairs N]

Both are cut with align=1 from one convolutional network, exported, and timed against it in turns on ONNX Runtime,
whose convolutions work in blocks of channels. "Accuracy" is the share of random inputs that are classified like the
original does. Writes benchmarks/results/align.json with every sample; exits with 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.core.graph import Example
from paretoprune.core.protocols import Target
from paretoprune.targets import Comparison, Timing, compare_files, find_target, fingerprint_id, size_bytes
from paretoprune.targets.feeds import feed_of
from paretoprune.tasks import evaluate, task_of

RESULT = Path(__file__).parent / "results" / "align.json"
WIDTH = 64
NARROWER = (63, 48)


class Hidden(nn.Module):
    """32 channels, 64 hidden ones, 32 again, on 16×16 positions: 9.7 M multiply-accumulates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.hidden = nn.Conv2d(32, WIDTH, 3, padding=1)
        self.back = nn.Conv2d(WIDTH, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.back(torch.relu(self.hidden(x))))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=200, help="timed pairs at least; more where it is noisy")
    timing = Timing(pairs=options.parse_args().pairs)
    target = find_target("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        candidates, samples = run(target, Path(folder), timing)
    front = pp.Front.of(candidates)
    rows = [row(c) for c in front.candidates]
    write(target, rows, samples)
    show(rows)
    sys.exit(verdict({r["name"]: r for r in rows}))


def run(target: Target, folder: Path, timing: Timing) -> tuple[list[pp.Candidate], dict[str, Any]]:
    torch.manual_seed(0)
    model = Hidden().eval()
    example = torch.randn(2, 3, 16, 16)
    inputs = torch.randn(512, 3, 16, 16).split(64)
    with torch.no_grad():
        labelled = [(x, model(x).argmax(1)) for x in inputs]
    original = pp.export(model, example, folder / "original.onnx")
    names = {WIDTH: "original", **{width: f"width {width}" for width in NARROWER}}
    candidates, samples = [], {}
    for width, name in names.items():
        pruned = pp.prune(model, example, ratio={"hidden": 1 - width / WIDTH}, align=1)
        assert pruned.model.hidden.out_channels == width
        file = original if width == WIDTH else pp.export(pruned, example, folder / f"{width}.onnx")
        # The original against itself shows what the comparison is worth.
        pair = against(target, original, file, example, timing)
        runner = target.load(file)
        accuracy = evaluate(lambda e, runner=runner: runner(feed_of(e)), labelled, task_of("classification"))
        measurements = {
            "accuracy": accuracy,
            "latency_ms": pair.b.latency_ms,
            "speedup": pair.ratio,
            "size_bytes": size_bytes(file),
            "macs": pp.Measurement.exact(pruned.macs, "MAC"),
        }
        candidates.append(pp.Candidate(name, pruned.plan, "fp32", file, measurements, original=width == WIDTH))
        samples[name] = {
            "original_cpu_ms": pair.a.samples.cpu_ms.tolist(),
            "cpu_ms": pair.b.samples.cpu_ms.tolist(),
            "original_wall_ms": pair.a.samples.wall_ms.tolist(),
            "wall_ms": pair.b.samples.wall_ms.tolist(),
        }
    return candidates, samples


def against(target: Target, original: Path, file: Path, example: Tensor, timing: Timing) -> Comparison:
    return compare_files(target, original, file, feed_of(Example.of(example[:1])), timing)


def row(candidate: pp.Candidate) -> dict[str, Any]:
    return {
        "name": candidate.name,
        "on_front": candidate.on_front,
        **{key: taken.to_json() for key, taken in candidate.measurements.items()},
    }


def write(target: Target, rows: list[dict[str, Any]], samples: dict[str, Any]) -> None:
    result = {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "commit": commit(),
        "machine": dict(target.fingerprint()),
        "machine_id": fingerprint_id(target.fingerprint()),
        "candidates": rows,
        "raw": samples,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def commit() -> str:
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(git, capture_output=True, text=True, check=False, cwd=RESULT.parent.parent).stdout.strip()


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'':<10}{'MACs':>12}{'ms':>8}{'speedup':>9}{'interval':>18}{'pairs':>7}  on the front")
    for r in rows:
        ratio = r["speedup"]
        interval = f"{ratio['low']:.3f} to {ratio['high']:.3f}"
        print(
            f"{r['name']:<10}{int(r['macs']['value']):>12,}{r['latency_ms']['value']:>8.3f}{ratio['value']:>9.3f}"
            f"{interval:>18}{ratio['runs']:>7}  {'yes' if r['on_front'] else 'no'}"
        )
    print(f"written: {RESULT}")


def verdict(rows: dict[str, dict[str, Any]]) -> int:
    """0 if all that the module's first line claims was seen."""
    wide, narrow, original = rows["width 63"], rows["width 48"], rows["original"]
    claims = {
        "the original ties with itself": original["speedup"]["low"] <= 1 <= original["speedup"]["high"],
        "63 has fewer MACs than the original": wide["macs"]["value"] < original["macs"]["value"],
        "63 is slower than the original, beyond the noise": wide["speedup"]["high"] < 1,
        "63 is not on the front": not wide["on_front"],
        "48 is faster than the original, beyond the noise": narrow["speedup"]["low"] > 1,
        "48 is on the front": narrow["on_front"],
    }
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    main()
