"""ResNet-56 on CIFAR-10 as JPEG: twelve points of a front, recovered on a GPU, in slices that can be gone on with.

    PARETOPRUNE_DATA=/path/to/data .venv/bin/python benchmarks/gpu/resnet56.py --out runs/resnet56

Again and again until it says that it is done: a slice ends after `--slice` minutes (8), and the next call goes on where
it stopped. Twelve members between 1.3 and 4 times fewer MACs, among them 2.1 and 2.57, are pruned (criterion
"reconstruction", 1,024 training images) and distilled from the original for `--epochs` (10) of the first 45,000
training images, last step, bf16. The test set is read once for each. Needs a CUDA build of torch; writes
benchmarks/results/gpu-resnet56.json when all are there, with the seconds of all slices.

Not run on a GPU so far: none was at hand. Tried on the CPU, two points of two steps in slices of a minute, which ended
two of four calls: `--device cpu --steps 2 --points 2 --slice 1`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import paretoprune as pp
from paretoprune.core.storage import atomic
from paretoprune.targets.fingerprint import machine_facts

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]
import cifar10  # noqa: E402

from recover import CRITERION, IMAGES, accuracy, commit  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "gpu-resnet56.json"
FEWER = (2.1, 2.57, 1.3, 1.5, 1.7, 1.9, 2.3, 2.8, 3.1, 3.4, 3.7, 4.0)
"""Times fewer MACs; the two that are compared with others' figures come first."""
CHECK_EVERY = 200


class SliceOver(Exception):
    """The rest is for the next call."""


class Points:
    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.started = given, time.perf_counter()
        folder = cifar10.folder_of(None)
        self.images, self.labels = cifar10.decoded(folder / cifar10.ARCHIVE, "train")
        self.test = cifar10.Batches(*cifar10.decoded(folder / cifar10.ARCHIVE, "test"))
        self.model = cifar10.build(9)
        self.model.load_state_dict(load_file(folder / "cifar10jpeg_resnet56.safetensors"))
        self.model.eval()

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.started

    def row(self, fewer: float) -> dict[str, Any]:
        """Made, trained and judged; raises SliceOver when the time is up, with the state on disk."""
        here = Path(self.given.out) / f"{fewer:g}"
        if not (here / "pruned").exists():
            self._go_on()
            drawn = np.random.default_rng(self.given.seed).choice(cifar10.TRAIN, IMAGES, replace=False)
            known = list(cifar10.Batches(self.images[drawn], self.labels[drawn]))
            cut = pp.prune(self.model, known[0][0][:2], macs=1 / fewer, calibration=known, criterion=CRITERION)
            pp.save(cut, here / "pruned")
        pruned = pp.load(here / "pruned")
        train = cifar10.Batches(self.images[: cifar10.TRAIN], self.labels[: cifar10.TRAIN], augment=True)
        steps = self.given.steps or self.given.epochs * len(train)
        tuned = pp.distill(
            pruned,
            self.model,
            train,
            steps=steps,
            seed=self.given.seed,
            device=self.given.device,
            precision="bf16" if self.given.device == "cuda" else "fp32",
            checkpoint=here / "training",
            check_every=CHECK_EVERY,
            on_step=lambda step, loss: self._go_on(),
        )
        pp.save(tuned, here / "tuned")
        return {
            "fewer": fewer,
            "macs": pruned.macs,
            "original_macs": pruned.original_macs,
            "steps": steps,
            "accuracy": accuracy(tuned.model, self.test),
        }

    def _go_on(self) -> None:
        if self.spent > 60 * self.given.slice:
            raise SliceOver


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("runs/resnet56"))
    options.add_argument("--slice", type=float, default=8.0, help="minutes")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--steps", type=int, default=0, help="in place of epochs, for trying this file")
    options.add_argument("--points", type=int, default=len(FEWER))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--device", default="cuda")
    given = options.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing was measured", file=sys.stderr)
        return 2
    state = given.out / "rows.json"
    kept: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {"rows": [], "slices_s": []}
    points = Points(given)
    over = False
    try:
        for fewer in FEWER[: given.points]:
            if fewer not in {r["fewer"] for r in kept["rows"]}:
                kept["rows"].append(points.row(fewer))
                write(state, kept)
                print(json.dumps(kept["rows"][-1]), flush=True)
    except SliceOver:
        over = True
    kept["slices_s"].append(points.spent)
    write(state, kept)
    if over:
        print(f"{len(kept['rows'])} of {given.points} points; call it again to go on", flush=True)
        return 3
    if given.device == "cuda" and given.points == len(FEWER) and not given.steps:
        device = {"gpu": torch.cuda.get_device_name(), **machine_facts()}
        about = {"command": " ".join(["python", *sys.argv]), "commit": commit(), "machine": device}
        write(RESULT, kept | about | {"minutes": sum(kept["slices_s"]) / 60})
    print("done")
    return 0


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
