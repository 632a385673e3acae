"""Where the time of a search goes, stage by stage, and what a measured candidate costs.

    .venv/bin/python benchmarks/pipeline.py [--recovery-steps N] [--candidates N]

The demo's network and data. Candidates are cut, proved, reconstructed and recalibrated; distillation is left out
unless asked for, since its length is a choice. Writes benchmarks/results/pipeline.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from paretoprune.pipeline import demo
from paretoprune.pipeline.search import search
from paretoprune.report.progress import progress
from paretoprune.store.run import RunFolder
from paretoprune.targets import find_target, fingerprint_id

RESULT = Path(__file__).parent / "results" / "pipeline.json"
PER_FILE = ("export", "measure", "evaluate")
PER_NETWORK = ("surgery", "reconstruct", "recalibrate")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--recovery-steps", type=int, default=0)
    options.add_argument("--candidates", type=int, default=12)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, progress() as bars:
        rows = run(Path(folder), given.candidates, given.recovery_steps, bars)
    target = find_target("onnxruntime")
    result = {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "commit": commit(),
        "machine": dict(target.fingerprint()),
        "machine_id": fingerprint_id(target.fingerprint()),
        "candidates": given.candidates,
        "recovery_steps": given.recovery_steps,
        **summary(rows["seconds"], rows["files"], rows["networks"]),
        "raw": rows["seconds"],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def run(folder: Path, candidates: int, steps: int, bars: Any) -> dict[str, Any]:
    sets = demo.digits()
    model = demo.trained(folder / "net", sets, bars)
    search(
        model,
        sets["train"][0][:1],
        demo.data(sets),
        out=folder / "run",
        candidates=candidates,
        steps=steps,
        budget="2 h",
        progress=bars,
    )
    view = RunFolder.read(folder / "run")
    return {
        "seconds": list(view.all("seconds").values()),
        "files": len(view.all("candidate")),
        "networks": len(view.all("network")),
    }


def summary(seconds: list[dict[str, Any]], files: int, networks: int) -> dict[str, Any]:
    """Seconds per stage, and CPU seconds per measured candidate without recovery by training."""
    stages: dict[str, dict[str, float]] = {}
    for one in seconds:
        stage = stages.setdefault(one["stage"], {"wall_s": 0.0, "cpu_s": 0.0, "calls": 0})
        stage["wall_s"] += one["wall_s"]
        stage["cpu_s"] += one["cpu_s"]
        stage["calls"] += 1

    def cpu(names: tuple[str, ...]) -> float:
        return sum(stages[n]["cpu_s"] for n in names if n in stages)

    return {
        "files": files,
        "networks": networks,
        "stages": stages,
        "cpu_s_per_measured_file": cpu(PER_FILE) / files,
        "cpu_s_per_network_made": cpu(PER_NETWORK) / networks,
    }


def commit() -> str:
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(git, capture_output=True, text=True, check=False, cwd=RESULT.parent.parent).stdout.strip()


def show(result: dict[str, Any]) -> None:
    print(f"{'stage':<16}{'calls':>6}{'wall s':>9}{'CPU s':>9}")
    for name, stage in sorted(result["stages"].items(), key=lambda kv: -kv[1]["cpu_s"]):
        print(f"{name:<16}{stage['calls']:>6}{stage['wall_s']:>9.1f}{stage['cpu_s']:>9.1f}")
    print(f"CPU seconds per measured file (export, measure, evaluate): {result['cpu_s_per_measured_file']:.2f}")
    print(f"CPU seconds per network (cut, prove, reconstruct, recalibrate): {result['cpu_s_per_network_made']:.2f}")
    print(f"written: {RESULT}")


if __name__ == "__main__":
    main()
