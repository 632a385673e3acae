"""What zeros cost in accuracy: a ResNet-20 without 80 % of its weights, in blocks and one by one, before and after one
epoch of distillation.

    PARETOPRUNE_DATA=/path/to/data OMP_NUM_THREADS=1 .venv/bin/python benchmarks/sparse_accuracy.py --seeds 0

The first convolution and the last layer stay dense (0.4 % of the weights); every other layer loses the same share. A
seed is the order and the crops of the training images. Training takes the settings of `pp.distill`; nothing was chosen
by these figures. The test set is read once for each network. Writes benchmarks/results/sparse_accuracy.json after each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.graph import tensors_of
from paretoprune.targets import find_target

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import cifar10  # noqa: E402

COMMAND = "OMP_NUM_THREADS=1 .venv/bin/python benchmarks/sparse_accuracy.py"
SHARE, PATTERNS, CRITERIA = 0.8, ("4x1", "unstructured"), ("magnitude", "wanda", "sparsegpt")
IGNORE = ("conv1.weight", "linear.weight")
CHECKPOINT = "cifar10jpeg_resnet20.safetensors"
Rows = list[dict[str, Any]]


def accuracy(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        return float(torch.cat([(module(x).argmax(1) == y).float() for x, y in batches]).mean())


def zeros(pruned: pp.Pruned) -> float:
    """Share of zeros in the weights that may hold some."""
    found = [t for n, t in tensors_of(pruned.model).items() if n in pruned.plan.sparsity]
    return sum(int((t == 0).sum()) for t in found) / sum(t.numel() for t in found)


def one_shot(net: nn.Module, x: Tensor, data: pp.Data) -> tuple[Rows, dict[str, pp.Pruned]]:
    rows, by_magnitude = [], {}
    for pattern in PATTERNS:
        for criterion in CRITERIA:
            seen = None if criterion == "magnitude" else data.calibration
            start = time.process_time()
            pruned = pp.sparsify(
                net, x, pattern=pattern, sparsity=SHARE, criterion=criterion, calibration=seen, ignore=IGNORE
            )
            row = {"pattern": pattern, "criterion": criterion, "zeros": zeros(pruned)}
            row["cpu_s"] = time.process_time() - start
            rows.append({**row, "accuracy": accuracy(pruned.model, data.test)})
            print(rows[-1], flush=True)
            if criterion == "magnitude":
                by_magnitude[pattern] = pruned
    return rows, by_magnitude


def distilled(pruned: pp.Pruned, net: nn.Module, data: pp.Data, seed: int, steps: int | None) -> dict[str, Any]:
    train: Any = data.train
    train.passes = 1000 * seed
    start = time.process_time()
    done = pp.distill(pruned, net, train, steps=steps or len(train), seed=seed)
    row = {"seed": seed, "steps": steps or len(train), "zeros": zeros(done), "cpu_s": time.process_time() - start}
    return {**row, "accuracy": accuracy(done.model, data.test)}


def summary(rows: Rows) -> Rows:
    found: Rows = []
    for pattern in PATTERNS:
        values = [r["accuracy"] for r in rows if r["pattern"] == pattern]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            found.append({"pattern": pattern, "mean": statistics.mean(values), "spread": spread, "seeds": len(values)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=None, help="instead of one epoch, to try it out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    data, net = cifar10.data(), cifar10.build(3)
    net.load_state_dict(load_file(cifar10.folder_of(None) / CHECKPOINT))
    net.eval()
    x = next(iter(data.calibration))[0][:2]
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    result: dict[str, Any] = {
        "command": " ".join([COMMAND, "--seeds", *map(str, given.seeds)]),
        "commit": subprocess.run(git, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip(),
        "machine": dict(find_target("onnxruntime").fingerprint()) | {"torch": torch.__version__},
        "checkpoint": CHECKPOINT,
        "share": SHARE,
        "dense_layers": list(IGNORE),
        "dense": accuracy(net, data.test),
    }
    rows: Rows = []
    result["one_shot"], start = one_shot(net, x, data)
    for seed in given.seeds:
        for pattern in PATTERNS:
            rows.append({"pattern": pattern, **distilled(start[pattern], net, data, seed, given.steps)})
            print(rows[-1], flush=True)
            result |= {"wall_s": time.perf_counter() - begun, "summary": summary(rows), "distilled": rows}
            file = ROOT / "benchmarks" / "results" / "sparse_accuracy.json"
            file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
