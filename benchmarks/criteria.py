"""Every criterion on the same footing, without a gradient step: what is left after the same cut and the same repair.

    PARETOPRUNE_DATA=/path/to/data .venv/bin/python benchmarks/criteria.py [--macs 0.667 0.474] [--images 1000]

A network is cut to a share of its MACs by each criterion (inner axes, widths by summed score, `--ranking` for
another), reconstructed and batch norms recalibrated on images of the first 45,000 training images, and judged on the
last 5,000 or some of them; the test set is not read. An encoder like BERT (SST-2) and an LSTM (spoken digits), which
`trained.py` trains, have the same done to their heads, feed-forward channels and units. Criteria that draw lots are run
with several seeds. Every order is also put to the same widths ("uniform": the same share of every axis), so that which
positions go is seen apart from how many go of each axis. `ENTRIES` holds the networks: to add one is one function that
gives the model, an example, calibration batches and validation batches.
Writes benchmarks/results/criteria.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import trained
from paretoprune import graph as graphs
from paretoprune import recover
from paretoprune.core.errors import PruneError
from paretoprune.core.protocols import Criterion
from paretoprune.criteria import CRITERIA
from paretoprune.criteria.entropy import ActivationEntropy
from paretoprune.criteria.random import Random
from paretoprune.pipeline import choose, ranking
from paretoprune.pipeline.prune import recover_cut, score
from paretoprune.targets import find_target
from paretoprune.tasks import task_of
from trained import Batches, accuracy

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "criteria.json"
SEEDS = range(3)
CALIBRATION = 512
"""Images for everything: scores (some look at 256 of them), Gram matrices, batch norms."""


@dataclass(frozen=True)
class Entry:
    """`calibration`: batches that were trained on. `validation`: batches that were not."""

    model: nn.Module
    example: Tensor
    calibration: Batches
    validation: Batches


def resnet20(images: int) -> Entry:
    """ResNet-20 tuned on the first 45,000 JPEG training images."""
    cifar = example_module("cifar10")
    model = cifar.build(3)
    folder = cifar.folder_of(None)
    model.load_state_dict(load_file(folder / "cifar10jpeg_resnet20.safetensors"))
    x, y = cifar.decoded(folder / cifar.ARCHIVE, "train")
    known = list(cifar.Batches(x[:CALIBRATION], y[:CALIBRATION]))
    held = list(cifar.Batches(x[cifar.TRAIN : cifar.TRAIN + images], y[cifar.TRAIN : cifar.TRAIN + images]))
    return Entry(model.eval(), held[0][0][:2], known, held)


def trained_here(name: str) -> Callable[[int], Entry]:
    def entry(images: int) -> Entry:
        network = trained.NETWORKS[name]()
        return Entry(network.model, network.known[0][0][:2], network.known, network.validation)

    return entry


ENTRIES: Mapping[str, Callable[[int], Entry]] = {
    "resnet20-cifar10jpeg": resnet20,
    "encoder-sst2": trained_here("encoder"),
    "lstm-fsdd": trained_here("recurrent"),
}


def contenders() -> dict[str, list[Criterion]]:
    """By name, one criterion for each seed; entropy at both ends."""
    found: dict[str, list[Criterion]] = {n: [c] for n, c in CRITERIA.items() if n not in ("magnitude", "random")}
    found["random"] = [Random(seed) for seed in SEEDS]
    found["entropy, low goes"] = [ActivationEntropy("low")]
    found["entropy, high goes"] = [ActivationEntropy("high")]
    del found["entropy"]
    return found


def example_module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Bench:
    """One network, traced once; Gram matrices are taken once."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.traced = graphs.trace(entry.model, entry.example)
        self.axes = choose.chosen_axes(self.traced)
        program = self.traced.program
        self.grams = recover.collect_grams(program, program.contractions, entry.calibration, samples=CALIBRATION)
        self.scores: dict[str, Any] = {}

    def rows(self, name: str, one: Criterion, seed: int, shares: Sequence[float], rank: Any) -> list[dict[str, Any]]:
        start = time.process_time()
        scores = score(self.traced, self.axes, one, task_of("classification"), self.entry.calibration)
        seconds = time.process_time() - start
        comparable = ranking.normalised(scores, "none" if one.comparable else "mean")
        found = []
        for share in shares:
            for allocation in ("own", "uniform"):
                widths = self.widths(comparable, share, rank if allocation == "own" else "local")
                plan = choose.plan_of(self.traced, widths, choose.removal_order(scores))
                made = {"criterion": name, "seed": seed, "macs_asked": share, "allocation": allocation}
                found.append(made | self.judged(plan) | {"scoring_cpu_s": round(seconds, 2)})
        return found

    def widths(self, scores: Any, share: float, rank: Any) -> dict[str, int]:
        if rank is None:
            return choose.widths_by_macs(self.traced, self.axes, scores, share)
        groups = ranking.groups_of(rank, self.axes, graphs.tensors_of(self.traced.program.module))
        return ranking.ranked_widths(self.traced, groups, scores, None, share)

    def judged(self, plan: Any) -> dict[str, Any]:
        cut = graphs.cut(self.traced, plan)
        recover_cut(self.traced, cut, self.grams, self.entry.calibration)
        widths = {axis: len(kept) for axis, kept in plan.kept.items()}
        return {
            "macs": round(self.traced.macs(widths) / self.traced.macs(), 4),
            "accuracy": accuracy(cut.program.module, self.entry.validation),
            "widths": [widths.get(a.id, a.size) for a in self.axes],
        }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--macs", type=float, nargs="+", default=[1 / 1.5, 1 / 2.11])
    options.add_argument(
        "--images", type=int, default=1000, help="validation images of the ResNet-20; the others take all"
    )
    options.add_argument("--networks", nargs="+", default=list(ENTRIES), choices=list(ENTRIES))
    options.add_argument("--ranking", choices=["local", "global", "isomorphic"], default=None)
    options.add_argument("--criteria", nargs="+", default=list(contenders()), choices=list(contenders()))
    options.add_argument("--out", type=Path, default=RESULT)
    given = options.parse_args()
    torch.set_num_threads(1)
    networks = {name: run(ENTRIES[name](given.images), given) for name in given.networks}
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    result = {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "commit": subprocess.run(git, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip(),
        "machine": dict(find_target("onnxruntime").fingerprint()),
        "ranking": given.ranking or "widths by summed score",
        "validation_images": given.images,
        "networks": networks,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, network in networks.items():
        show(name, network)
    print(f"written: {given.out}")


def run(entry: Entry, given: argparse.Namespace) -> dict[str, Any]:
    bench = Bench(entry)
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for name in given.criteria:
        for seed, one in enumerate(contenders()[name]):
            try:
                rows += bench.rows(name, one, seed, given.macs, given.ranking)
            except PruneError as error:
                refused[name] = str(error)
        print(f"  {name}", file=sys.stderr, flush=True)
    return {"dense": accuracy(bench.traced.program.module, entry.validation), "rows": rows, "refused": refused}


def show(name: str, network: Mapping[str, Any]) -> None:
    """Percent correct, mean over seeds: own widths and uniform ones, for every share of the MACs."""
    rows = network["rows"]
    cells = list(dict.fromkeys((r["macs_asked"], r["allocation"]) for r in rows))
    print(f"{name}: dense {100 * network['dense']:.1f}")
    print(f"{'criterion':<22}" + "".join(f"{f'{m:.3f} {a}':>16}" for m, a in cells))
    table = {}
    for criterion in dict.fromkeys(r["criterion"] for r in rows):
        mine = [r for r in rows if r["criterion"] == criterion]
        table[criterion] = [
            mean([r["accuracy"] for r in mine if (r["macs_asked"], r["allocation"]) == cell]) for cell in cells
        ]
    for criterion, values in sorted(table.items(), key=lambda kv: -sum(kv[1])):
        print(f"{criterion:<22}" + "".join(f"{100 * v:>16.1f}" for v in values))
    for criterion, why in network["refused"].items():
        print(f"{criterion}: {why}")


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
