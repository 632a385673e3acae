"""One network in a process of its own: `python -m zoo.child NAME inner|all|peer` prints one line of JSON."""

from __future__ import annotations

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


if __name__ == "__main__":
    main(*sys.argv[1:])
