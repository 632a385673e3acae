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
from paretoprune.pipeline.levels import Levels
from paretoprune.pipeline.targets import Packing, find_target
from paretoprune.pipeline.zero_choices import PREFIX
from paretoprune.sparsity.kernels import available
from paretoprune.targets import CostTable
from paretoprune.targets.sparse_cpu import DOMAIN, SparseCpu

pytestmark = pytest.mark.skipif(not available(), reason="the sparse kernels were not compiled")
LEVELS = Levels({f"{PREFIX}conv2.weight": ("conv2.weight", ("16x1@0.9", "16x1@0.5"))})


def test_a_level_says_what_a_weight_holds() -> None:
    name = f"{PREFIX}conv2.weight"
    assert LEVELS.split({"conv1": 8, name: 1}) == ({"conv1": 8}, {"conv2.weight": "16x1@0.9"})
    assert LEVELS.split({name: 2}) == ({}, {"conv2.weight": "16x1@0.5"})
    assert LEVELS.split({name: 3}) == ({}, {})


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
