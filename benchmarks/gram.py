"""The Gram pass and the elimination of a ResNet-50 at 224 pixels: seconds and memory against images.

    PARETOPRUNE_DATA=/path/to/data .venv/bin/python benchmarks/gram.py [--images 64 128 256] [--threads 2]

Second moments of what enters every convolution and the classifier, then the order of elimination of every inner axis:
what criterion "reconstruction" and a search need to know of the data. The weights are random (no trained ResNet-50 is
at hand), the images are photographs; neither changes what is computed. Each count of images has a process of its own.
Beside it the physical floor: multiply-accumulates of the forward pass and of the products x xT, one way.
Writes benchmarks/results/gram.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from paretoprune import graph as graphs
from paretoprune import recover
from paretoprune.pipeline import choose
from paretoprune.pipeline.evidence import elimination
from paretoprune.recover.gram import ROWS_CAP
from paretoprune.targets.fingerprint import machine_facts
from scale import Residual, commit, peak, reset_peak, resident

RESULT = Path(__file__).parent / "results" / "gram.json"
MARK = "gram-row: "
BATCH = 32


def resnet50() -> nn.Sequential:
    """He et al. 2016, table 1, at full width; the stride stands in the 3 x 3 convolution."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    into = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        out = 256 * 2**stage
        for i in range(count):
            layers.append(Residual(into, out, 2 if stage and not i else 1, 4))
            into = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, 1000))


def images(count: int) -> list[Tensor]:
    """Centre crops of 224 pixels, normalised, in batches."""
    data = np.load(Path(os.environ["PARETOPRUNE_DATA"]) / "imagenet_sample1000_256px.npz")
    blob, offsets = data["jpeg"].tobytes(), data["offsets"]
    crops = [
        np.asarray(Image.open(io.BytesIO(blob[offsets[i] : offsets[i + 1]])).convert("RGB").crop((16, 16, 240, 240)))
        for i in range(count)
    ]
    x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return list(((x - mean) / std).split(BATCH))  # type: ignore[no-untyped-call]


def measured(count: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, batches = resnet50().eval(), images(count)
    traced = graphs.trace(model, batches[0][:2])
    axes = choose.chosen_axes(traced, "inner", ())
    reset_peak()
    before = resident()
    contractions = traced.program.contractions
    cpu, wall = time.process_time(), time.perf_counter()
    grams = recover.collect_grams(traced.program, contractions, batches, samples=count)
    pass_s = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    cpu, wall = time.process_time(), time.perf_counter()
    by_weight = {c.weight: c for c in contractions if c.node in grams}
    orders = [elimination(traced, axis, by_weight, grams) for axis in axes]
    eliminated = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    products = sum(g.rows * len(g.mean) ** 2 for g in grams.values())
    return {
        "images": count,
        "threads": threads,
        "contractions": len(grams),
        "axes": len(axes),
        "ordered": sum(order is not None for order in orders),
        "rows_cap": ROWS_CAP,
        "gram_pass": pass_s,
        "elimination": eliminated,
        "floor_macs": {"forward": traced.macs() * count, "products": products},
        "peak_bytes": peak(),
        "above_network_and_images_bytes": peak() - before,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", nargs="+", type=int, default=[64, 128, 256])
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--child", type=int, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        print(MARK + json.dumps(measured(given.child, given.threads)))
        return
    rows: list[dict[str, Any]] = []
    for count in given.images:
        command = [sys.executable, __file__, "--child", str(count), "--threads", str(given.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [t for t in done.stdout.splitlines() if t.startswith(MARK)]
        if not lines:
            sys.exit(f"{count} images ended with status {done.returncode}:\n{done.stderr[-2000:]}")
        rows.append(json.loads(lines[-1].removeprefix(MARK)))
        print(json.dumps(rows[-1]), flush=True)
    about = {"command": " ".join(["python", *sys.argv]), "commit": commit(), "machine": machine_facts()}
    RESULT.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
