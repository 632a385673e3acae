"""A network that just fits into memory can be pruned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretoprune import graph as graphs
from paretoprune.core.plan import Plan
from paretoprune.graph import rebuild_gradients, surgery, values

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
    assert row["peak_bytes"] <= 2 * row["weights_bytes"]


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


class Bent(nn.Module):
    """The same values at every `bend`, with gradients of the first layer that are 1 + bend times as large."""

    def __init__(self, bend: float = 0.0, trains: bool = True):
        super().__init__()
        self.bend, self.trains = bend, trains
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.one(x))
        result: Tensor = self.two(hidden + self.bend * (hidden - hidden.detach()))
        return result if self.trains else result.detach()


@pytest.mark.parametrize("most", [64, 16 << 20])
def test_gradients_are_compared_in_turn_and_together(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In turn for a matrix larger than `most`, of which only products are compared."""
    monkeypatch.setattr(rebuild_gradients, "GRADIENT_BYTES", most)
    x = torch.randn(2, 6)
    program = graphs.trace(Bent().eval(), x).program.module
    large, rest = rebuild_gradients.chunks_of(Bent(), program)
    assert (large, len(rest)) == (([["one.weight"], ["two.weight"]], 2) if most == 64 else ([], 1))

    def found(network: nn.Module) -> graphs.Difference | None:
        assert not graphs.put_tensors(network.eval(), graphs.tensors_of(program))
        return graphs.difference(network, program, graphs.trace(Bent().eval(), x).example)

    assert found(Bent()) is None
    bent, untrained = found(Bent(bend=0.1)), found(Bent(trains=False))
    assert bent is not None
    assert bent.why.startswith("the gradient of 'one.weight' differs")
    assert untrained is not None
    assert untrained.why.startswith("its outputs can be trained")


def test_pieces_make_up_the_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surgery, "_BLOCK_BYTES", 100)
    tensor, rows, columns = torch.randn(7, 5, 3), np.array([0, 2, 3, 6]), np.array([1, 4])
    for kept in ((None, None, None), (rows, None, None), (None, columns, None), (rows, columns, None)):
        whole = graphs.slice_tensor(tensor, kept)
        expected = tensor[rows] if kept[0] is not None else tensor
        assert torch.equal(whole, expected[:, columns] if kept[1] is not None else expected)
        pieces = list(graphs.pieces_of(tensor, kept))
        assert len(pieces) > 1 or kept == (None, None, None)
        assert all(torch.equal(whole[place], piece) for place, piece in pieces)
        assert sum(piece.numel() for _, piece in pieces) == whole.numel()
