"""Zeros in weights compete with widths in a search, at their measured cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import paretoprune as pp
import paretoprune.targets.cost as cost_room
from paretoprune.core.errors import PlanError, UsageError
from paretoprune.core.sparsity import Zeros
from paretoprune.pipeline.cost_model import CostModel
from paretoprune.pipeline.level_choices import BLOCK, PREFIX, USUAL, USUAL_INT8, usual_of
from paretoprune.pipeline.levels import Levels, Meaning
from paretoprune.pipeline.targets import Packing, find_target
from paretoprune.sparsity.kernels import available
from paretoprune.targets import CostTable
from paretoprune.targets.sparse_cpu import DOMAIN, SparseCpu

pytestmark = pytest.mark.skipif(not available(), reason="the sparse kernels were not compiled")
LEVELS = Levels({f"{PREFIX}conv2.weight": ("conv2.weight", ("16x1@0.9", "16x1@0.5"))})


def test_a_level_says_what_a_weight_holds_or_that_a_block_goes() -> None:
    name = f"{PREFIX}conv2.weight"
    assert LEVELS.meaning({"conv1": 8, name: 1}) == Meaning({"conv1": 8}, {"conv2.weight": "16x1@0.9"}, ())
    assert LEVELS.meaning({name: 2}) == Meaning({}, {"conv2.weight": "16x1@0.5"}, ())
    assert LEVELS.meaning({name: 3}) == Meaning({}, {}, ())
    levels = Levels({}, {f"{BLOCK}layer1.0": "layer1.0"})
    assert levels.meaning({f"{BLOCK}layer1.0": 1}) == Meaning({}, {}, ("layer1.0",))
    assert levels.meaning({f"{BLOCK}layer1.0": 2}) == Meaning({}, {}, ())


def test_zeros_count_at_their_cost_and_never_above_the_dense_layer(
    make_net: Callable[[], nn.Module], example: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cost_room,
        "measure_layer",
        lambda target, spec, precision: {"": 1.0, "16x1@0.9": 0.25, "16x1@0.5": 7.0}[spec.zeros],
    )
    table = CostTable(find_target("sparse-cpu"))
    model = CostModel(pp.trace(make_net(), example), table, ("fp32",), {}, levels=LEVELS)
    name = f"{PREFIX}conv2.weight"
    assert model.share({name: 1}) == pytest.approx((1 + 0.25 + 1) / 3)
    assert model.share({name: 2}) == model.share({name: 3}) == model.share({}) == 1


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        (
            {"zeros": ["16x1@0.8"]},
            UsageError,
            "onnxruntime is no faster for zeros in its weights; use target='sparse-cpu'",
        ),
        ({"zeros": ["sixteen"], "target": "sparse-cpu"}, PlanError, "zeros 'sixteen': expected a pattern"),
        ({"nested": True, "target": "sparse-cpu"}, UsageError, "leave one of them out"),
    ],
)
def test_what_gains_nothing_is_refused(
    make_net: Callable[[], nn.Module], example: Tensor, data: pp.Data, options: Any, error: Any, why: str
) -> None:
    with pytest.raises(error, match=why):
        pp.search(make_net(), example, data, **options)


def test_a_search_carries_zeros_out_and_keeps_them(
    quick: None,
    make_net: Callable[[], nn.Module],
    example: Tensor,
    data: pp.Data,
    costs: Callable[..., float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cost(target: Any, spec: Any, precision: str) -> float:
        left = 1 - (Zeros.parse(spec.zeros).share or 0) if spec.zeros else 1.0
        return left * costs(target, replace(spec, zeros=""), precision)

    monkeypatch.setattr(cost_room, "measure_layer", cost)
    target = SparseCpu(1, Packing(), keep="all")
    front = pp.search(
        *(make_net(), example, data),
        target=target,
        zeros=["4x1@0.8", "4x1@0.5"],
        precisions=["fp32"],
        candidates=3,
        steps=3,
        align=8,
        out=tmp_path / "run",
    )
    with_zeros = [c for c in front.candidates if c.plan.sparsity]
    assert with_zeros
    for candidate in with_zeros:
        weights = dict(candidate.load().named_parameters())
        for name, text in candidate.plan.sparsity.items():
            share = float((weights[name] == 0).float().mean())
            assert share == pytest.approx(Zeros.parse(text).share, abs=0.02), (candidate.name, name)
        assert DOMAIN in {n.domain for n in onnx.load(str(candidate.path)).graph.node}
        x, _ = next(iter(data.test))
        answers = target.load(candidate.path)({"input": x.numpy()})[0]
        with torch.no_grad():
            torch.testing.assert_close(candidate.load()(x), torch.from_numpy(answers), rtol=1e-4, atol=1e-4)


def test_blocks_compete_with_widths_and_go_as_a_whole(
    quick: None, data: pp.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two blocks; one does hardly anything, so it goes first."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 16, 3, padding=1, stride=2), nn.Linear(16, 4)
            self.a, self.b = (nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 1)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            x = torch.relu(x + self.a(x))
            x = torch.relu(x + self.b(x))
            result: Tensor = self.head(x.mean((2, 3)))
            return result

    torch.manual_seed(0)
    model = Deep().eval()
    with torch.no_grad():
        model.b[2].weight.mul_(1e-3)
        model.b[2].bias.zero_()
    options = {"precisions": ["fp32"], "candidates": 4, "steps": 2, "align": 8, "out": tmp_path / "run"}
    front = pp.search(model, torch.randn(2, 1, 8, 8), data, depth=True, **options)
    shorter = [c for c in front.candidates if c.plan.blocks]
    assert shorter
    assert "b" in {name for c in shorter for name in c.plan.blocks}
    for candidate in shorter:
        assert candidate.macs < front.original.macs
        assert not any(
            n.startswith(f"{b}.") for b in candidate.plan.blocks for n, _ in candidate.load().named_parameters()
        )
    with pytest.raises(UsageError, match="drops some: leave one out"):
        pp.search(model, torch.randn(2, 1, 8, 8), data, depth=True, nested=True)


def test_usual_zeros_are_those_that_the_target_and_the_precisions_gain_from() -> None:
    sparse = find_target("sparse-cpu")
    assert usual_of(sparse, ("fp32",)) == USUAL
    assert usual_of(sparse, ("fp32", "int8")) == (*USUAL, *USUAL_INT8)
    assert usual_of(find_target("onnxruntime"), ("fp32", "int8")) == ()
