"""Prune every network of the zoo and judge it: one process per network, one line of JSON per answer.

python -m zoo [--only PATTERN] [--axes inner|all|both] [--peer] [--jobs N] [--resume] [--results FILE] [--table FILE]
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from zoo import child, table
from zoo.networks import NETWORKS

ROOT = Path(__file__).parents[2]
RESULTS, TABLE = ROOT / "benchmarks" / "results" / "zoo.json", ROOT / "docs" / "zoo.md"
LIMIT_S = {"inner": 600.0, "all": 600.0, "peer": 150.0}
LIMIT_MB = 12_000
PEER_PACKAGE = "torch-pruning"

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    names = [n for n in NETWORKS if any(fnmatch.fnmatchcase(n, p) for p in options.only or ["*"])]
    kinds = ["inner", "all"] if options.axes == "both" else [options.axes]
    kinds += ["peer"] if options.peer else []
    journal = options.results.with_suffix(".jsonl")
    journal.parent.mkdir(parents=True, exist_ok=True)
    done = {(r["network"], r["kind"]): r for r in read(journal)} if options.resume else {}
    journal.write_text("".join(json.dumps(r) + "\n" for r in done.values()))  # a line that was cut off goes
    asked = [(n, k) for n in names for k in kinds if (n, k) not in done]
    with ThreadPoolExecutor(options.jobs) as pool:
        for finished in pool.map(lambda pair: answered(*pair, options.limit), asked):
            done[finished["network"], finished["kind"]] = finished
            with journal.open("a") as file:
                file.write(json.dumps(finished) + "\n")
            print(line(finished), flush=True)
    rows = [done[n, k] for n in names for k in kinds]
    result = {**provenance(), "command": "python -m zoo " + " ".join(arguments or sys.argv[1:]), "rows": rows}
    options.results.write_text(json.dumps(result, indent=1) + "\n")
    options.table.write_text(table.markdown(result))
    journal.unlink()
    print(table.summary(rows))
    return int(any(r["status"] == "wrong" for r in rows if r["kind"] != "peer"))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="python -m zoo", description=__doc__)
    options.add_argument(
        "--only", action="append", help="names that match this pattern, e.g. 'timm/*'; may be repeated"
    )
    options.add_argument("--axes", choices=("inner", "all", "both"), default="both")
    options.add_argument("--peer", action="store_true", help="ask Torch-Pruning too")
    options.add_argument("--resume", action="store_true", help="keep the answers of a run that was stopped")
    options.add_argument("--jobs", type=int, default=1, help="networks at a time, each on one thread")
    options.add_argument("--limit", type=float, help="CPU seconds per network (600; 150 for the peer)")
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--table", type=Path, default=TABLE)
    return options.parse_args(arguments)


def read(journal: Path) -> Iterator[Row]:
    """Finished lines; the last one may have been cut off."""
    for text in journal.read_text().splitlines() if journal.exists() else []:
        try:
            yield json.loads(text)
        except ValueError:
            return


def answered(name: str, kind: str, limit: float | None = None) -> Row:
    """Run one child within its limits of time and memory."""
    head = {"network": name, "family": NETWORKS[name].family, "kind": kind, "commit": commit()}
    limit = LIMIT_S[kind] if limit is None else limit
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        process = processes().Process(target=child.into, args=(str(out), name, kind, limit))
        process.start()
        ended = watch(process, limit)
        text = out.read_text(errors="replace") if out.exists() else ""
    wall = round(time.perf_counter() - started, 2)
    if ended:
        return {**head, "status": ended, "why": f"stopped at {wall:.0f} s of wall clock", "wall_s": wall}
    for found in reversed(text.splitlines()):
        if found.startswith(child.MARK):
            return {**head, **json.loads(found.removeprefix(child.MARK))}
    why = " | ".join(text.strip().splitlines()[-2:])[:300]
    return {**head, "status": "crash", "why": f"ended with status {process.exitcode}: {why}", "wall_s": wall}


@functools.cache
def processes() -> ForkServerContext:
    """Forks from a process that has imported everything and runs no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zoo.warm"])
    return context


def watch(process: BaseProcess, limit: float) -> str:
    """Wait for the child; "timeout" or "memory" where it had to be stopped.

    The limit is CPU seconds, so that a busy machine changes no verdict; a child that waits has four times as long.
    """
    deadline = time.monotonic() + 4 * limit
    seen = psutil.Process(process.pid)
    while process.is_alive():
        try:
            memory, spent = seen.memory_info().rss >> 20, sum(seen.cpu_times()[:2])
        except psutil.NoSuchProcess:
            memory, spent = 0, 0.0
        late = spent > limit or time.monotonic() > deadline
        if memory > LIMIT_MB or late:
            process.kill()
            process.join()
            return "timeout" if late else "memory"
        process.join(0.1)
    return ""


def provenance() -> dict[str, Any]:
    """Commit, machine and versions."""
    from importlib.metadata import PackageNotFoundError, version

    from paretoprune.targets.fingerprint import machine_facts

    versions = {}
    for package in ("torch", "torchvision", "timm", "transformers", "onnxruntime", PEER_PACKAGE):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {"commit": commit(), "machine": machine_facts(), "versions": versions}


@functools.cache
def commit() -> str:
    """Of each row, for a run that was stopped may go on with a later one."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(git, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()


def line(row: Row) -> str:
    cut = f"{row['cut']:6.1%}" if "cut" in row else " " * 6
    error = f"{row['error']:.0e}" if "error" in row else " " * 5
    why = row.get("why", "") if row["status"] != "exact" else ""
    return (
        f"{row['network']:34s} {row['kind']:5s} {row['status']:8s} {cut} {error} {row.get('output', ''):5s} {why[:120]}"
    )


if __name__ == "__main__":
    sys.exit(main())
