"""Pruning that knows it will be quantized: what is scored is the network as its int8 file rounds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paretoprune as pp
from paretoprune import graph as graphs
from paretoprune.core.errors import UsageError
from paretoprune.pipeline.prune import rounded
from paretoprune.targets import find_target


class Coarse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.second(torch.relu(self.first(x)))
        return answer


@pytest.fixture
def coarse() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Coarse().eval()


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(64, 6, generator=torch.Generator().manual_seed(1))


def test_weights_and_activations_are_on_the_grid_of_the_file(coarse: nn.Module, rows: Tensor, tmp_path: Any) -> None:
    traced = graphs.trace(coarse, rows[:2])
    seen = rounded(traced, "onnxruntime", [rows])
    held = graphs.tensors_of(seen.program.module)["first.weight"].detach()
    step = float(held.abs().max()) / 63
    assert not torch.equal(held, coarse.first.weight)  # type: ignore[union-attr]
    assert torch.allclose(held, coarse.first.weight, atol=step)  # type: ignore[arg-type]
    path = pp.export(coarse, rows[:2], tmp_path / "net.onnx", precision="int8", calibration=[rows])
    (given,) = find_target("onnxruntime").load(path)({"input": rows.numpy()})
    exact, near = coarse(rows).detach(), seen.program.module(rows).detach()
    assert (near - torch.from_numpy(given)).abs().mean() < 0.3 * (exact - torch.from_numpy(given)).abs().mean()
    assert torch.equal(graphs.tensors_of(traced.program.module)["first.weight"], coarse.first.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("criterion", ["l2", "taylor", "least-squares"])
def test_every_kind_of_criterion_can_look_at_it(coarse: nn.Module, rows: Tensor, criterion: str) -> None:
    batches = [(rows, torch.arange(64) % 3)]
    name = "reconstruction" if criterion == "least-squares" else criterion
    pruned = pp.prune(coarse, rows[:2], ratio=0.5, criterion=name, calibration=batches, quantized="onnxruntime")
    assert len(pruned.plan.kept["first"]) == 4
    assert not any("fakes" in n for n, _ in pruned.model.named_modules())


def test_a_unit_that_rounding_switches_off_goes_first(rows: Tensor) -> None:
    """Unit 1 gives much and is read by small weights: beside a large one on the same grid they are zeros."""
    net = Coarse().eval()
    with torch.no_grad():
        net.second.weight[:] = torch.tensor([5.0, 0.03, *[1.0] * 6]) * torch.tensor([[1.0], [-1.0], [0.5]])
        net.first.weight[1] *= 40
    asked = {"ratio": 0.125, "criterion": "taylor", "calibration": [(rows, torch.arange(64) % 3)]}
    as_it_is = pp.prune(net, rows[:2], **asked)
    as_the_file = pp.prune(net, rows[:2], quantized="onnxruntime", **asked)
    assert 1 in as_it_is.plan.kept["first"]
    assert as_the_file.plan.kept["first"] == (0, 2, 3, 4, 5, 6, 7)


def test_it_needs_calibration(coarse: nn.Module, rows: Tensor) -> None:
    with pytest.raises(UsageError, match="quantized='onnxruntime' needs calibration="):
        pp.prune(coarse, rows[:2], ratio=0.5, quantized="onnxruntime")


def test_a_search_scores_on_int8(searching: Callable[..., pp.Front]) -> None:
    front = searching(score_on="int8", candidates=1)
    assert any(c.name.startswith("c01") for c in front.candidates)
    with pytest.raises(UsageError, match="score_on='int4'"):
        searching(score_on="int4")
