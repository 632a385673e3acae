"""Recovery on a GPU, measuring on the CPU: the demo's search with device="cuda" beside device="cpu".

    .venv/bin/python benchmarks/gpu/recovery.py

Needs a CUDA build of torch. Prints seconds of distillation per candidate on both, and whether the exported files agree
in accuracy. Not run so far: no machine with a GPU was at hand.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from paretoprune.pipeline import demo
from paretoprune.pipeline.search import search
from paretoprune.report.progress import progress
from paretoprune.store.run import RunFolder

STEPS = 100


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured", file=sys.stderr)
        return 2
    sets = demo.digits()
    with tempfile.TemporaryDirectory() as folder, progress() as bars:
        model = demo.trained(Path(folder), sets, bars)
        for device in ("cpu", "cuda"):
            out = Path(folder) / device
            front = search(
                model,
                sets["train"][0][:1],
                demo.data(sets),
                device=device,
                out=out,
                steps=STEPS,
                candidates=4,
                progress=bars,
            )
            seconds = [s["wall_s"] for s in RunFolder.read(out).all("seconds").values() if s["stage"] == "distil"]
            shares = ", ".join(f"{c.name} {c.accuracy:.3f}" for c in front.candidates)
            print(f"{device}: {sum(seconds) / len(seconds):.2f} s of distillation per candidate; {shares}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
