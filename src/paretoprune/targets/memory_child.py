"""Run in a fresh process by `fresh.py`: load a file, answer, and print two numbers.

How far resident memory grew with one sample, in bytes (-1 where the system keeps no record), and how long load and
first answer took, in nanoseconds. What it answers to the batches is written to outputs.npz.

Its argument is a folder with job.json and inputs.npz; the first of the feeds is the one sample. For the runtimes of
OPEN it imports numpy and the runtime only. What is imported before the file is loaded does not count.
"""

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[dict[str, Any]], Sequence[Any]]
Load = Callable[[str, int], Run]


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


def taking(names: Iterable[str], run: Run) -> Run:
    """An input that the network does not use may be missing in the file."""
    wanted = set(names)
    return lambda feed: run({name: value for name, value in feed.items() if name in wanted})


def with_onnxruntime(library: Any) -> Load:
    def load(model: str, threads: int) -> Run:
        options = library.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        session = library.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return taking([i.name for i in session.get_inputs()], lambda feed: session.run(None, feed))

    return load


def with_openvino(library: Any) -> Load:
    def load(model: str, threads: int) -> Run:
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = library.Core().compile_model(model, "CPU", settings)
        request = compiled.create_infer_request()
        names = [i.any_name for i in compiled.inputs]
        return taking(names, lambda feed: request.infer(feed, share_inputs=True).to_tuple())

    return load


OPEN = {"onnxruntime": with_onnxruntime, "openvino": with_openvino}


def opened(name: str, reopen: str, threads: int) -> Load:
    """Everything is imported here."""
    if not reopen:
        return OPEN[name](importlib.import_module(name))
    module, _, function = reopen.partition(":")
    loader = getattr(importlib.import_module(module), function)(name, threads)

    def load(model: str, threads: int) -> Run:
        runner = loader(Path(model))
        return taking(runner.input_names, runner)

    return load


def end_with(parent: int) -> None:
    """Nobody waits for the answer of a process whose parent was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main(folder: str) -> None:
    place = Path(folder)
    job = json.loads((place / "job.json").read_text("utf-8"))
    threading.Thread(target=end_with, args=(job["parent"],), daemon=True).start()
    feeds = job["feeds"]
    with np.load(place / "inputs.npz", allow_pickle=False) as archive:

        def feed(number: int) -> dict[str, Any]:
            return {name: archive[f"{number}_{i}"] for i, name in enumerate(feeds[number])}

        load = opened(job["name"], job["reopen"], job["threads"])
        sample = feed(0)
        recorded = forget_peak()
        before = resident()[0] if recorded else 0
        begun = time.perf_counter_ns()
        run = load(job["model"], job["threads"])
        run(sample)
        first = time.perf_counter_ns() - begun
        for _ in range(job["runs"] - 1):
            run(sample)
        grown = resident()[1] - before if recorded else -1
        answers = {f"{n - 1}_{i}": np.array(v) for n in range(1, len(feeds)) for i, v in enumerate(run(feed(n)))}
    with (place / "outputs.npz").open("wb") as file:
        np.savez(file, **answers)  # type: ignore[arg-type]
    sys.stdout.write(f"{grown} {first}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
