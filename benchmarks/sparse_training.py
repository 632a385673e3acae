"""Methods of sparse training and plain magnitude at equal steps, on digits.

    OMP_NUM_THREADS=1 nice -n 10 .venv/bin/python benchmarks/sparse_training.py

Every way starts from the same trained network, takes the same number of steps of batch 64 and removes the same share of
every inner axis. "plain" trains on and is cut at the end; "magnitude first" is cut before. Seeds shuffle the split and
the training; defaults were chosen on seed 0, which is left out. The test set is read once per network. Writes
benchmarks/results/sparse_training.json.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paretoprune as pp
from paretoprune.targets import find_target

ROOT = Path(__file__).parent.parent
COMMAND = "OMP_NUM_THREADS=1 nice -n 10 .venv/bin/python benchmarks/sparse_training.py"
SEEDS, STEPS, RATIOS, BATCH = (1, 2, 3), 200, (0.5, 0.75), 64
METHODS = ("group_lasso", "greg", "l0", "sfp")
Batches = list[tuple[Tensor, Tensor]]


class Net(nn.Module):
    """Three convolutions and a hidden layer on 1×8×8 images; 33,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.conv3, self.norm3 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.hidden, self.head = nn.Linear(32, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(x)))
        result: Tensor = self.head(F.relu(self.hidden(x.mean((2, 3)))))
        return result


def digits(seed: int) -> tuple[Batches, Batches, Batches]:
    """(train, validation, test): 1,047, 250 and 500 images."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy(raw.images.astype(np.float32) / 16)[:, None]
    y = torch.from_numpy(raw.target.astype(np.int64))
    test, validation, train = np.split(np.random.default_rng(seed).permutation(len(y)), [500, 750])
    x = (x - x[train].mean()) / x[train].std()

    def batches(index: Any, size: int) -> Batches:
        return list(zip(x[index].split(size), y[index].split(size), strict=True))

    return batches(train, BATCH), batches(validation, 250), batches(test, 500)


def accuracy(module: nn.Module, batches: Batches) -> float:
    with torch.no_grad():
        return float(torch.cat([(module(x).argmax(1) == y).float() for x, y in batches]).mean())


def trained(train: Batches, seed: int) -> Net:
    torch.manual_seed(seed)
    net = Net()
    return pp.finetune(net, train, steps=250, lr=0.1, seed=seed)


def ways(net: Net, sets: tuple[Batches, Batches, Batches], ratio: float, seed: int) -> Mapping[str, Callable[[], Any]]:
    """Each gives a pruned network after STEPS steps."""
    train, validation, test = sets
    example = train[0][0][:2]

    def plain() -> pp.Pruned:
        return pp.prune(pp.finetune(net, train, steps=STEPS, seed=seed), example, ratio=ratio)

    def first() -> pp.Pruned:
        return pp.finetune(pp.prune(net, example, ratio=ratio), train, steps=STEPS, seed=seed)

    def sparse(method: str) -> Callable[[], pp.Pruned]:
        def run() -> pp.Pruned:
            result = pp.train_sparse(net, example, train, method=method, steps=STEPS, ratio=ratio, seed=seed)
            return pp.apply(result.model, example, result.plan())

        return run

    def rounds() -> pp.Pruned:
        data = pp.Data(train, validation, test)
        return pp.prune_gradually(
            net, example, data, ratio=ratio, rounds=4, steps_per_round=STEPS // 4, adjust=False, seed=seed
        ).pruned

    return {
        "plain training, then magnitude": plain,
        **{method: sparse(method) for method in METHODS},
        "magnitude first, then tuned": first,
        "pruned gradually (4 rounds, cubic)": rounds,
    }


def main() -> None:
    torch.set_num_threads(1)
    begun, table, dense = time.perf_counter(), [], []
    for seed in SEEDS:
        sets = digits(seed)
        net = trained(sets[0], seed)
        dense.append(accuracy(net, sets[2]))
        for ratio in RATIOS:
            for name, way in ways(net, sets, ratio, seed).items():
                start = time.process_time()
                pruned = way()
                row = {"way": name, "ratio": ratio, "seed": seed, "accuracy": accuracy(pruned.model, sets[2])}
                table.append({**row, "macs": pruned.macs / pruned.original_macs, "cpu_s": time.process_time() - start})
                print(row, flush=True)
    summary = [
        {"way": name, "ratio": ratio, "mean": statistics.mean(found), "spread": statistics.stdev(found)}
        for ratio in RATIOS
        for name in dict.fromkeys(row["way"] for row in table)
        if (found := [row["accuracy"] for row in table if (row["way"], row["ratio"]) == (name, ratio)])
    ]
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    result = {
        "command": COMMAND,
        "commit": subprocess.run(git, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip(),
        "machine": dict(find_target("onnxruntime").fingerprint()) | {"torch": torch.__version__},
        "wall_s": time.perf_counter() - begun,
        "steps": STEPS,
        "dense": {"mean": statistics.mean(dense), "spread": statistics.stdev(dense)},
        "summary": summary,
        "rows": table,
    }
    file = ROOT / "benchmarks" / "results" / "sparse_training.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    for row in summary:
        print(f"{row['ratio']:.2f}  {100 * row['mean']:5.1f} ± {100 * row['spread']:.1f}  {row['way']}")
    print(f"dense {100 * result['dense']['mean']:.1f}; {file}")


if __name__ == "__main__":
    main()
