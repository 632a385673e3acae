"""Keep the figures of a finished run: every measured file, the machine, the commit and the command.

    .venv/bin/python benchmarks/record.py runs/demo demo "make demo"

Writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import paretoprune as pp
from paretoprune.pipeline import reporting
from paretoprune.store.run import RunFolder

ROOT = Path(__file__).parent.parent


def main(folder: str, name: str, command: str) -> None:
    view, front = RunFolder.read(folder), pp.read_front(folder)
    chosen, reason = reporting.recommend(front)
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    result = {
        "command": command,
        "commit": subprocess.run(git, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip(),
        "machine": dict(front.target),
        "chosen": None if chosen is None else chosen.name,
        "reason": reason,
        "limits": [str(limit) for limit in front.limits],
        "stages_wall_s": dict(reporting.stages(view)),
        "members": [row | {"path": Path(row["path"]).name} for row in front.to_rows()],
        "recovery": {name: network.get("recovery") for name, network in view.all("network").items()},
    }
    file = ROOT / "benchmarks" / "results" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
