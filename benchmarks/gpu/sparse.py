"""2:4 against dense linear layers of BERT-small's sizes on an NVIDIA GPU, in fp16 and bf16.

    .venv/bin/python benchmarks/gpu/sparse.py [--rows 128 1024 8192]

Each layer is a file of target `cuda` with 2:4 weights; it is timed as the target runs it (on the sparse units) against
the same file with its weights left dense, in turns, by CUDA events. `rows`: batch x sequence length. Prints the times
and how many times faster 2:4 is, with 95 % intervals, or why a layer stayed dense; writes
benchmarks/results/gpu-sparse.json.

NOT RUN so far: no machine with a GPU was at hand. There are no results of it, and no claim rests on it.
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
from paretoprune.sparsity import mask_of, pattern_of
from paretoprune.targets import Timing
from paretoprune.targets.latency import compare
from paretoprune.targets.torch_target import Torch
from paretoprune.targets.traits import describe, timing_for

RESULT = Path(__file__).parents[1] / "results" / "gpu-sparse.json"
SHAPES = {"attention": (512, 512), "feed forward, in": (512, 2048), "feed forward, out": (2048, 512)}
"""Inputs, outputs."""
PRECISIONS = ("fp16", "bf16")


def layer(inputs: int, outputs: int) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Linear(inputs, outputs)
    scores = made.weight.detach().abs().numpy()
    made.weight.data *= torch.from_numpy(mask_of(pattern_of("2:4"), scores))
    return nn.Sequential(made).eval()


def measured(target: Any, shape: tuple[int, int], precision: str, rows: int, folder: Path) -> dict[str, Any]:
    example = Example.of(torch.randn(rows, shape[0], generator=torch.Generator().manual_seed(0)))
    try:
        path = target.export(layer(*shape), example, folder / f"{precision}-{rows}.safetensors", precision)
        sparse = target.load(path)
        if why := sparse.notes.get("0.weight", "the exported weight does not obey 2:4"):
            return {"left dense": why}
        feed = {sparse.input_names[0]: example.args[0].numpy()}
        timing: Timing = timing_for(target, max_cpu_s=5.0)
        found = compare(dense_of(target, path).bind(feed), sparse.bind(feed), timing)
    except pp.errors.PruneError as error:
        return {"failed": str(error)}
    return {
        "dense_ms": found.a.wall_ms.to_json(),
        "sparse_ms": found.b.wall_ms.to_json(),
        "speedup": found.ratio.to_json(),
    }


def dense_of(target: Any, path: Path) -> Any:
    """The same file on the same GPU as target `torch` would load it: without the sparse units."""
    other = Torch(target.threads, target._graphs)
    other.device = target.device
    return other.load(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 128, 1024, 8192])
    given = parser.parse_args()
    try:
        target = find_target("cuda")
    except pp.errors.PruneError as error:
        print(f"nothing was measured: {error}", file=sys.stderr)
        return 2
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            for precision in PRECISIONS:
                for rows in given.rows:
                    key = f"{name} {rows}x{shape[0]}x{shape[1]} {precision}"
                    found[key] = measured(target, shape, precision, rows, Path(folder))
                    show(key, found[key])
    about = {"torch": torch.__version__, "settings": dict(describe(target)), "fingerprint": dict(target.fingerprint())}
    RESULT.write_text(json.dumps({**about, "layers": found}, indent=1) + "\n")
    return 0


def show(key: str, row: dict[str, Any]) -> None:
    if "speedup" not in row:
        print(key, *(f"{name}: {why}" for name, why in row.items()))
        return
    dense, sparse, ratio = (row[name] for name in ("dense_ms", "sparse_ms", "speedup"))
    interval = f"({ratio['low']:.2f} to {ratio['high']:.2f})"
    print(f"{key}: dense {dense['value']:.4f} ms, 2:4 {sparse['value']:.4f} ms: {ratio['value']:.2f}x {interval}")


if __name__ == "__main__":
    sys.exit(main())
