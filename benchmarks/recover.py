"""How much accuracy a pruned ResNet-20 gets back, without a gradient step and with a few: CIFAR-10 as JPEG.

    PARETOPRUNE_DATA=/path/to/data .venv/bin/python benchmarks/recover.py [--parts free short epoch] [--seeds 0 1 2 3 4]

free    1,024 of the first 45,000 training images, another draw of them for each seed; no gradient step; at 1.5 and 2.11
        times fewer MACs.
short   at 2.11 times fewer MACs, then 200 steps of distillation of batch 128, on answers and hidden activations.
epoch   the same for one epoch of the 45,000.

Ways: channels alone; low rank ("auto", in space) with ranks in steps of 16, which runtimes like; any rank.

The test set is read once for each final network. Settings were chosen on validation images (the last 5,000 training
images). Writes benchmarks/results/recover.json, row by row, so that a run can be cut short and gone on with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.pipeline.pruned import Pruned
from paretoprune.targets.fingerprint import machine_facts

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "recover.json"
IMAGES = 1024
SHARES = {"1.5": 1 / 1.5, "2.11": 1 / 2.11}
CRITERION = "reconstruction"
WAYS: Mapping[str, Mapping[str, Any]] = {
    "channels": {"criterion": CRITERION},
    "low rank": {"ranks": "auto", "align": 16},
    "any rank": {"ranks": "auto"},
}
STEPS = {"short": 200, "epoch": 45_000 // 128}
Batches = Iterable[tuple[Tensor, Tensor]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--parts", nargs="+", default=["free", "short"], choices=["free", *STEPS])
    options.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": []}
    result |= {"commands": [*result.get("commands", []), " ".join(["python", *sys.argv])]}
    done = {(r["part"], r["way"], r["fewer"], r["seed"]) for r in result["rows"]}
    bench = Bench(given.ways)
    for part in given.parts:
        for seed in given.seeds:
            for row in bench.rows(part, seed, done):
                result["rows"].append(row | {"commit": commit(), "machine": machine_facts(), "threads": given.threads})
                RESULT.write_text(json.dumps(result, indent=1) + "\n")
                print(
                    json.dumps({k: row[k] for k in ("part", "way", "fewer", "seed", "accuracy", "wall_s")}), flush=True
                )
    result["figures"] = figures(result["rows"])
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["figures"], indent=1))


class Bench:
    def __init__(self, ways: Iterable[str] = tuple(WAYS)) -> None:
        sys.path.insert(0, str(ROOT / "examples"))
        import cifar10

        self.cifar, self.ways = cifar10, set(ways)
        folder = cifar10.folder_of(None)
        self.images, self.labels = cifar10.decoded(folder / cifar10.ARCHIVE, "train")
        self.test = cifar10.Batches(*cifar10.decoded(folder / cifar10.ARCHIVE, "test"))
        self.model: nn.Module = cifar10.build(3)
        self.model.load_state_dict(load_file(folder / "cifar10jpeg_resnet20.safetensors"))
        self.model.eval()

    def rows(self, part: str, seed: int, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
        for way, fewer in ((w, f) for w in WAYS for f in (SHARES if part == "free" else ["2.11"])):
            if (part, way, fewer, seed) in done or way not in self.ways:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            pruned = self.pruned(way, SHARES[fewer], seed)
            if part != "free":
                inside = {"hidden": True, "example": torch.zeros(2, 3, 32, 32)}
                pruned = self.trained(pruned, STEPS[part], seed, **inside)
            spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
            yield {
                "part": part,
                "way": way,
                "fewer": fewer,
                "seed": seed,
                "macs": pruned.macs,
                "original_macs": pruned.original_macs,
                "accuracy": accuracy(pruned.model, self.test),
                "notes": list(pruned.notes),
                **spent,
            }

    def pruned(self, way: str, share: float, seed: int) -> Pruned:
        drawn = np.random.default_rng(seed).choice(self.cifar.TRAIN, IMAGES, replace=False)
        known = list(self.cifar.Batches(self.images[drawn], self.labels[drawn]))
        return pp.prune(self.model, known[0][0][:2], macs=share, calibration=known, **WAYS[way])

    def trained(self, pruned: Pruned, steps: int, seed: int, **how: Any) -> Pruned:
        return pp.distill(pruned, self.model, self.training(), steps=steps, seed=seed, **how)

    def training(self) -> Batches:
        return self.cifar.Batches(self.images[: self.cifar.TRAIN], self.labels[: self.cifar.TRAIN], augment=True)


def accuracy(model: nn.Module, batches: Batches) -> float:
    with torch.inference_mode():
        hits = [(model(x).argmax(1) == y) for x, y in batches]
    return float(torch.cat(hits).double().mean())


def figures(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Percent of the 10,000 test images: mean and standard deviation over seeds."""
    found = {}
    for key in dict.fromkeys((r["part"], r["way"], r["fewer"]) for r in rows):
        mine = [r for r in rows if (r["part"], r["way"], r["fewer"]) == key]
        values = [100 * r["accuracy"] for r in mine]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        macs = statistics.mean(r["original_macs"] / r["macs"] for r in mine)
        cpu = statistics.mean(r["cpu_s"] for r in mine)
        cost = f"{len(values)} seeds; {macs:.2f}x fewer MACs, {cpu:.0f} CPU s"
        found[" ".join(key)] = f"{statistics.mean(values):.2f} ± {spread:.2f} ({cost})"
    return found


def commit() -> str:
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(git, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()


if __name__ == "__main__":
    main()
