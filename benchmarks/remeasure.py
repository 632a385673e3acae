"""Every member of a front measured again, each in a fresh process: how far do the figures move?

    .venv/bin/python benchmarks/remeasure.py runs/demo [--rounds N]

Runs `paretoprune measure MEMBER --against ORIGINAL --json` and compares its latency and paired speedup with those
that the search recorded. Writes benchmarks/results/remeasure-<folder's name>.json with every measurement. Deviations
are relative: +2 % means that the figure is higher now.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import psutil

import paretoprune as pp
from paretoprune.targets import find_target, fingerprint_id

RESULTS = Path(__file__).parent / "results"
FIGURES = ("latency_ms", "speedup")
AGREE = 0.05


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("--rounds", type=int, default=1, help="fresh processes per member")
    given = options.parse_args()
    front = pp.read_front(given.run)
    target = find_target("onnxruntime")
    rows = [again(member, front.original, given.rounds) for member in front.members]
    file = RESULTS / f"remeasure-{given.run.resolve().name}.json"
    result = {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "commit": commit(),
        "machine": dict(target.fingerprint()),
        "machine_id": fingerprint_id(target.fingerprint()),
        "machine_of_the_search": dict(front.target),
        "members": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    show(rows)
    print(f"written: {file}")


def again(member: pp.Candidate, original: pp.Candidate, rounds: int) -> dict[str, Any]:
    """Recorded and fresh figures of one member. The original is timed against itself."""
    fresh = []
    for _ in range(rounds):
        load = psutil.getloadavg()[0]
        fresh.append({**measured(member.path, original.path), "load_average": load})
        print(f"{member.name} measured again", file=sys.stderr)
    recorded = {key: member.measurements[key].to_json() for key in FIGURES}
    return {
        "name": member.name,
        "precision": member.precision,
        "original": member.original,
        "recorded": recorded,
        "fresh": fresh,
        "deviation": {key: median(one[key]["value"] for one in fresh) / recorded[key]["value"] - 1 for key in FIGURES},
        "intervals_meet": {key: all(meet(one[key], recorded[key]) for one in fresh) for key in FIGURES},
    }


def measured(file: Path, original: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "paretoprune", "measure", str(file), "--against", str(original), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{file} could not be measured: {done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def meet(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return bool(a["low"] <= b["high"] and b["low"] <= a["high"])


def commit() -> str:
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(git, capture_output=True, text=True, check=False, cwd=RESULTS.parent.parent).stdout.strip()


def show(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'member':<16}{'recorded ms':>12}{'now ms':>10}{'':>9}{'recorded x':>12}{'now x':>9}{'':>9}  intervals meet"
    )
    for r in rows:
        cells = f"{r['name']:<16}"
        for key, digits, wide in (("latency_ms", 4, 10), ("speedup", 3, 9)):
            now = median(one[key]["value"] for one in r["fresh"])
            cells += f"{r['recorded'][key]['value']:>12.{digits}f}{now:>{wide}.{digits}f}{r['deviation'][key]:>+9.1%}"
        yes = [key for key in FIGURES if r["intervals_meet"][key]]
        print(f"{cells}  {', '.join(yes) or 'neither'}")
    for key in FIGURES:
        deviations = [abs(r["deviation"][key]) for r in rows]
        within = sum(d <= AGREE for d in deviations)
        print(f"{key}: {within} of {len(rows)} members within {AGREE:.0%}; largest deviation {max(deviations):.1%}")


if __name__ == "__main__":
    main()
