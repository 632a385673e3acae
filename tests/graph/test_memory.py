"""A network that just fits into memory can be pruned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from paretoprune import graph as graphs
from paretoprune.core.plan import Plan
from paretoprune.graph import values

SCALE = Path(__file__).parents[2] / "benchmarks" / "scale.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is reset through Linux's /proc")
def test_pruning_takes_twice_the_weights_at_most() -> None:
    """Capture, scores, check, surgery and rebuild, counted in a fresh process; 117 MB of weights, a small batch."""
    paths = os.pathsep.join(str(SCALE.parents[1] / part) for part in ("src", "benchmarks"))
    done = subprocess.run(
        [sys.executable, str(SCALE), "--child", "memory", "three linears"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    row = json.loads(done.stdout.splitlines()[-1].partition(": ")[2])
    assert row["weights_bytes"] > 100e6
    assert row["peak_bytes"] <= 2.1 * row["weights_bytes"]


@pytest.mark.parametrize("weights", ["own", "random", "positive"])
def test_a_matrix_by_rows_is_the_matrix(weights: values.Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of the self-check, with rows that fit into no piece evenly."""
    monkeypatch.setattr(values, "KEPT_BYTES", 3000)
    monkeypatch.setattr(values, "_ROWS_BYTES", 1000)
    net = nn.Sequential(nn.Linear(50, 301), nn.ReLU(), nn.Linear(301, 299), nn.ReLU(), nn.Linear(299, 3)).eval()
    graph = graphs.trace(net, torch.randn(2, 50))
    plan = Plan({"0": tuple(range(0, 301, 3)), "2": (5, 250, 298)})
    kept = graphs.cut(graph, plan).kept
    made = values.Values(graph, torch.float64, weights)
    for side in (values.Side(graph, plan, made), values.Side(graph, plan, made, kept)):
        for name in ("0.weight", "2.weight"):
            assert side.large(name)
            pieces = list(side.rows(name))
            assert len(pieces) > 10
            torch.testing.assert_close(torch.cat(pieces), side[name], rtol=0, atol=0)
    graphs.check(graph, plan)
