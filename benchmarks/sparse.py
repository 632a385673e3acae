"""What zeros in weights bring: layers and whole networks on the packed kernels against the best dense runtime.

    PARETOPRUNE_DATA=/path/to/data OMP_NUM_THREADS=1 .venv/bin/python benchmarks/sparse.py [--parts networks]

layers    the shapes of sparse_kernels.py: fp32 blocks and single weights, int8 and binary weights, each against the
          best dense of ONNX Runtime, OpenVINO and torch (MKL); fractions of the processor's peak.
networks  ResNet-50 at 224 px and BERT-small of 128 words, batch 1, 80 % of the weights zero in blocks (16x1; 16x4 in 8
          bits), exported to target sparse-cpu, and as operators inside OpenVINO; against ONNX Runtime and OpenVINO in
          32 and 8 bits. Weights are random: time does not ask.

What the zeros cost in accuracy is in sparse_accuracy.py. One thread, CPU time, pairs interleaved. Writes
benchmarks/results/sparse.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import sparse_kernels
import sparse_networks
from paretoprune.sparsity import kernels

RESULT = Path(__file__).parent / "results" / "sparse.json"
PARTS = ("layers", "networks")


def show(row: dict[str, Any]) -> None:
    ratio = row["speedup"]
    text = f"{row['network']} {row['precision']} {row['pattern']}, {row['packed_layers']} packed layers"
    text += f" ({row['runs on']}): {ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    text += f" x {row['against']}; {row['size_bytes'] / row['dense_size_bytes']:.0%} of the dense file"
    if "goal" in row:
        text += f"  goal {row['goal']:g}x {'met' if ratio['value'] >= row['goal'] else 'MISSED'}"
    print(text, flush=True)


def named(row: dict[str, Any], only: list[str]) -> bool:
    """Is it measured anew? What else a file holds stays in it."""
    return any(part in row.get("network", row.get("shape", "")) for part in only)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    options.add_argument("--only", nargs="*", help="parts of the names of shapes, or networks")
    options.add_argument("--pairs", type=int, default=20, help="of each layer")
    options.add_argument("--set", help=f"instruction set, one of {', '.join(kernels.available())}")
    given = options.parse_args()
    torch.set_num_threads(1)
    wanted = kernels.choose(given.set)
    held = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    held |= {"command": " ".join([Path(sys.executable).name, *sys.argv]), "commit": sparse_kernels.commit()}
    held |= {"machine": sparse_kernels.machine(wanted), "threads": 1}
    sources = {
        "layers": lambda: sparse_kernels.layers(wanted, given.only, given.pairs),
        "networks": lambda: sparse_networks.rows(given.only, sparse_networks.usual()),
    }
    for part in given.parts:
        held[part] = [row for row in held.get(part, []) if given.only and not named(row, given.only)]
        for row in sources[part]():
            held[part].append({**row, "commit": held["commit"]})
            if part == "networks":
                show(row)
            RESULT.write_text(json.dumps(held, indent=1) + "\n")
    print(f"written: {RESULT}")


if __name__ == "__main__":
    main()
