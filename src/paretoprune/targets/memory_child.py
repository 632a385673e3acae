"""Run in a fresh process by `memory.py`: load a file, run it, print how far resident memory grew, in bytes.

Arguments: model, inputs (.npz), threads, runs, names of the inputs. It imports numpy and onnxruntime only, and what
they take does not count.
"""

import sys

import numpy as np
import onnxruntime


def resident() -> tuple[int, int]:
    """(now, peak) resident bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        facts = dict(line.split(":", 1) for line in file)
    return tuple(1024 * int(facts[key].split()[0]) for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def forget_peak() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def main(model: str, inputs: str, threads: str, runs: str, *names: str) -> None:
    with np.load(inputs, allow_pickle=False) as archive:
        feed = {name: archive[f"arr_{i}"] for i, name in enumerate(names)}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    forget_peak()
    before, _ = resident()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for _ in range(int(runs)):
        session.run(None, feed)
    sys.stdout.write(f"{resident()[1] - before}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
