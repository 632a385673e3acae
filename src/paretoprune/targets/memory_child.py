"""Run in a fresh process by `memory.py`: load a file, run it, and print two numbers.

How far resident memory grew, in bytes (-1 where the system keeps no record), and how long load and first run took, in
nanoseconds.

Arguments: runtime, or name@pkg.mod:function (see `targets.traits`), model, inputs (.npz), threads, runs, names of the
inputs. It imports numpy and the runtime only, and what they take does not count.
"""

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def resident() -> tuple[int, int]:
    """(now, peak) resident bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        facts = dict(line.split(":", 1) for line in file)
    return tuple(1024 * int(facts[key].split()[0]) for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def forget_peak() -> bool:
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return True


def with_onnxruntime(library: Any, model: str, threads: int) -> Callable[[dict[str, Any]], Any]:
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = library.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


def with_openvino(library: Any, model: str, threads: int) -> Callable[[dict[str, Any]], Any]:
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = library.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda feed: request.infer(feed, share_inputs=True)


def by_reference(runtime: str, threads: int) -> tuple[Any, Callable[[Any, str, int], Any]]:
    """(the function that loads a file, how it is called). What it needs is imported by now."""
    name, _, reference = runtime.partition("@")
    module, _, function = reference.partition(":")
    load = getattr(importlib.import_module(module), function)(name, threads)
    return load, lambda load, model, threads: load(Path(model))


OPEN = {"onnxruntime": with_onnxruntime, "openvino": with_openvino}


def main(runtime: str, model: str, inputs: str, threads: str, runs: str, *names: str) -> None:
    with np.load(inputs, allow_pickle=False) as archive:
        feed = {name: archive[f"arr_{i}"] for i, name in enumerate(names)}
    if "@" in runtime:
        library, opened = by_reference(runtime, int(threads))
    else:
        library, opened = importlib.import_module(runtime), OPEN[runtime]
    recorded = forget_peak()
    before = resident()[0] if recorded else 0
    begun = time.perf_counter_ns()
    run = opened(library, model, int(threads))
    run(feed)
    first = time.perf_counter_ns() - begun
    for _ in range(int(runs) - 1):
        run(feed)
    sys.stdout.write(f"{resident()[1] - before if recorded else -1} {first}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
