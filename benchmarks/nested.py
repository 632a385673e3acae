"""A nested network against tuning each member alone, at equal image-forwards: ResNet-20 on CIFAR-10 as JPEG.

    PARETOPRUNE_DATA=/path/to/data .venv/bin/python benchmarks/nested.py [--members 4 12] [--seeds 0 1 2]

`members` forms of the network are pruned and reconstructed (1,024 training images, no gradient step): of 4, with 1.5,
2.11, 2.57 and 3.5 times fewer MACs; of 12, these and eight others between 1.2 and 4. Each way then has `ALONE[members]`
times 128 images for each of them, on the student's side:

alone   every member is distilled by itself.
nested  `pp.distill_nested`: most of the images go through four members at a time, the rest into a polish of each.

Reported are the four, on the test set, which is read once for each final network. Of 12 members alone only these are
trained: the others would change nothing. The teacher answers every batch of each way once, so that the nested network
saves most of its forwards; they are listed, not made equal, and so are the images of recalibration. Writes
benchmarks/results/nested.json row by row, so that a run can be cut short and gone on with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

import paretoprune as pp
from paretoprune.pipeline.nesting import POLISH_LR
from paretoprune.pipeline.pruned import Pruned
from paretoprune.recover.training import LR
from paretoprune.targets.fingerprint import machine_facts
from recover import ROOT, Bench, accuracy, commit

RESULT = ROOT / "benchmarks" / "results" / "nested.json"
REPORTED = (1.5, 2.11, 2.57, 3.5)
OTHERS = (1.2, 1.35, 1.7, 1.9, 2.3, 2.85, 3.15, 4.0)
ALONE = {4: 100, 12: 33}
"""Steps of each member alone."""
POLISH = {4: 15, 12: 9}
"""Steps of each member after the nested network, out of the same number of image-forwards."""
TOGETHER = 4
"""Members that a step of the nested network asks."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--members", nargs="+", type=int, default=[4, 12], choices=list(ALONE))
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": []}
    result |= {"commands": [*result.get("commands", []), " ".join(["python", *sys.argv])]}
    done = {(r["way"], r["members"], r["seed"]) for r in result["rows"]}
    bench = Bench()
    for seed in given.seeds:
        for members in given.members:
            for row in rows(bench, members, seed, done):
                result["rows"].append(row | {"commit": commit(), "machine": machine_facts(), "threads": given.threads})
                result["figures"] = figures(result["rows"])
                RESULT.write_text(json.dumps(result, indent=1) + "\n")
                print(json.dumps({k: row[k] for k in ("way", "members", "seed", "accuracy", "cpu_s")}), flush=True)
    print(json.dumps(result.get("figures", {}), indent=1))


def rows(bench: Bench, members: int, seed: int, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    todo = [way for way in ("alone", "nested") if (way, members, seed) not in done]
    fewer = sorted(REPORTED if members == len(REPORTED) else (*REPORTED, *OTHERS))
    pruned = {f: bench.pruned("channels", 1 / f, seed) for f in fewer} if todo else {}
    steps, polish = ALONE[members], POLISH[members]
    together = members * (steps - polish) // TOGETHER
    for way in todo:
        cpu = time.process_time()
        if way == "alone":
            found = {f: bench.trained(pruned[f], steps, seed) for f in REPORTED}
            forwards = {"students": members * steps * 128, "teacher": members * steps * 128}
        else:
            found = nested(bench, pruned, together, polish, seed)
            batches = together + members * polish
            students = (together * TOGETHER + members * polish) * 128
            forwards = {"students": students, "teacher": batches * 128, "recalibration": members * 1024}
        yield {
            "way": way,
            "members": members,
            "seed": seed,
            "steps": {"alone": steps} if way == "alone" else {"together": together, "polish": polish},
            "image_forwards": forwards,
            "cpu_s": time.process_time() - cpu,
            "accuracy": {str(f): accuracy(found[f].model, bench.test) for f in REPORTED},
        }


def nested(bench: Bench, pruned: dict[float, Pruned], steps: int, polish: int, seed: int) -> dict[float, Pruned]:
    """The polish of members that are not reported would change nothing here, and is left out."""
    trained = pp.distill_nested(list(pruned.values()), bench.model, bench.training(), steps=steps, seed=seed)
    found = dict(zip(pruned, trained, strict=True))
    lr = LR * POLISH_LR
    alone = {f: pp.distill(found[f], bench.model, bench.training(), steps=polish, lr=lr, seed=seed) for f in REPORTED}
    return found | alone


def figures(found: list[dict[str, Any]]) -> dict[str, str]:
    """Percent of the 10,000 test images at 1.5, 2.11, 2.57 and 3.5 times fewer MACs."""
    result = {}
    for key in dict.fromkeys((r["members"], r["way"]) for r in found):
        mine = [r for r in found if (r["members"], r["way"]) == key]
        columns = [[100 * r["accuracy"][str(f)] for r in mine] for f in REPORTED]
        cells = [f"{statistics.mean(c):.2f} ± {statistics.stdev(c) if len(c) > 1 else 0:.2f}" for c in columns]
        result[f"{key[0]} members, {key[1]}"] = f"{', '.join(cells)} ({len(mine)} seeds)"
    return result


if __name__ == "__main__":
    main()
