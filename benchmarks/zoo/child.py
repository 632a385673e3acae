"""One network in a process of its own, forked from one in which everything is imported.

`python -m zoo.child NAME inner|all|peer` does it in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
import traceback
import warnings

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

MARK = "ZOO-RESULT "


def warm_up() -> None:
    """What every network needs is loaded once: it is most of the time of a small one."""
    import torch
    from torch import nn

    import paretoprune as pp
    from zoo import ours, peer  # noqa: F401
    from zoo.networks.entry import torchvision_operators

    torch.set_num_threads(1)
    torchvision_operators()
    for package in ("torchvision", "timm", "transformers", "torch_pruning", "onnxruntime"):
        with contextlib.suppress(ImportError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            __import__(package)
    pp.prune(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(2, 4), ratio=0.5)


def main(name: str, kind: str) -> None:
    import torch

    from zoo import ours, peer

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    try:
        result = peer.row(name) if kind == "peer" else ours.row(name, kind)
    except Exception as error:  # noqa: BLE001 - whatever happens to a network is its row
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        where = " < ".join(f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in reversed(frames))
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({where})"
        result = {"status": "crash", "why": why}
    result["wall_s"] = round(time.perf_counter() - started, 2)
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(MARK + json.dumps(result), flush=True)


def into(file: str, name: str, kind: str, limit: float) -> None:
    """The same with everything that is printed in a file. Whoever started it may have died: it ends by itself."""
    most = int(2 * limit) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most, most))
    with open(file, "wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    main(name, kind)


if __name__ == "__main__":
    main(*sys.argv[1:])
