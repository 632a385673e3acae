"""Which axes, how many positions, which ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.core.axis import Axis, Scores
from paretoprune.core.errors import ModelError, PlanError, UsageError
from paretoprune.pipeline import choose
from paretoprune.pipeline.choose import (
    aligned,
    candidate_widths,
    chosen_axes,
    plan_of,
    removal_order,
    widths_by_macs,
    widths_by_ratio,
)
from paretoprune.pipeline.ranking import normalised


class Residual(nn.Module):
    """A residual stream of 8 channels ("stem") around an inner convolution of 12."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 12, 3, padding=1)
        self.outer = nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.outer(torch.relu(self.inner(x)))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


@pytest.fixture(scope="module")
def graph() -> Any:
    torch.manual_seed(0)
    return pp.trace(Residual(), torch.zeros(2, 1, 6, 6))


def ids(axes: tuple[Axis, ...]) -> list[str]:
    return [axis.id for axis in axes]


def sized(**sizes: int) -> list[Axis]:
    return [Axis(name, size, True, "", "channel", ()) for name, size in sizes.items()]


def scores_of(axes: tuple[Axis, ...]) -> Scores:
    return Scores({a.id: np.arange(1.0, a.size + 1) for a in axes}, "rising")


def test_inner_leaves_the_residual_stream_and_all_takes_it(graph: Any) -> None:
    inner, every = chosen_axes(graph, "inner"), chosen_axes(graph, "all")
    assert [a.size for a in inner] == [12]
    assert sorted(a.size for a in every) == [8, 12]
    assert all(a.kind == "residual" for a in every if a.size == 8)


def test_a_function_decides_among_what_can_be_pruned(graph: Any) -> None:
    asked: list[Axis] = []

    def wide(axis: Axis) -> bool:
        asked.append(axis)
        return axis.size > 8

    assert [a.size for a in chosen_axes(graph, wide)] == [12]
    assert all(a.prunable for a in asked)


def test_ignore_takes_patterns(graph: Any) -> None:
    inner = ids(chosen_axes(graph, "inner"))[0]
    assert inner not in ids(chosen_axes(graph, "all", [inner]))
    with pytest.raises(UsageError, match=r"ignore='inn\.r' matches no axis; there are '"):
        chosen_axes(graph, "all", ["inn.r"])


def test_nothing_left_says_what_is_frozen_and_why(graph: Any) -> None:
    with pytest.raises(ModelError, match=r"no axis to prune with axes='all', ignore=\['\*'\]; frozen are '.*output"):
        chosen_axes(graph, "all", ["*"])
    with pytest.raises(ModelError, match="no axis to prune"):
        chosen_axes(graph, lambda axis: False)


def test_an_unknown_choice_of_axes_is_refused(graph: Any) -> None:
    with pytest.raises(UsageError, match="axes='outer': give 'inner', 'all', or a function"):
        chosen_axes(graph, "outer")


def test_ratio_is_the_share_removed() -> None:
    axes = sized(a=10, b=7)
    assert widths_by_ratio(axes, 0.5) == {"a": 5, "b": 4}
    assert widths_by_ratio(axes, 0.0) == {"a": 10, "b": 7}
    assert widths_by_ratio(axes, 0.3) == {"a": 7, "b": 5}  # 0.3 * 10 is 3, also in binary


def test_ratio_by_pattern_takes_the_first_that_fits() -> None:
    axes = sized(**{"block.1": 10, "block.2": 10, "head": 10})
    assert widths_by_ratio(axes, {"block.1": 0.8, "block.*": 0.5}) == {"block.1": 2, "block.2": 5, "head": 10}
    with pytest.raises(UsageError, match=r"ratio names 'blok\.\*', which matches no axis; there are 'block\.1'"):
        widths_by_ratio(axes, {"blok.*": 0.5})


@pytest.mark.parametrize("ratio", [-1, -0.01, 1.01, float("nan"), float("inf"), "half", None])
def test_a_ratio_that_is_no_share_is_refused(ratio: Any) -> None:
    with pytest.raises(UsageError, match="give the share of positions to remove, from 0 to below 1"):
        widths_by_ratio(sized(a=10), {"a": ratio})


def test_align_rounds_up_and_never_beyond_the_size() -> None:
    axes = sized(a=30, b=20)
    assert widths_by_ratio(axes, 0.5, align=8) == {"a": 16, "b": 16}
    assert widths_by_ratio(axes, 0.1, align=16) == {"a": 30, "b": 20}


def test_below_the_floor_is_refused_with_the_numbers() -> None:
    with pytest.raises(PlanError) as error:
        widths_by_ratio(sized(conv=64), 1.0)
    assert str(error.value) == (
        "cannot prune axis 'conv' to 0 of 64 positions: at least 1 must stay (floor=1); lower ratio=1.0"
    )
    with pytest.raises(PlanError, match="to 5 of 10 positions: at least 6 must stay"):
        widths_by_ratio(sized(a=10), 0.5, floor=6)


@pytest.mark.parametrize("name", ["align", "floor"])
@pytest.mark.parametrize("value", [0, -4, 1.5, True, "8"])
def test_align_and_floor_are_whole_numbers(name: str, value: Any, graph: Any) -> None:
    axes = chosen_axes(graph)
    with pytest.raises(UsageError, match=f"{name}=.*whole number of at least 1"):
        widths_by_ratio(axes, 0.5, **{name: value})
    with pytest.raises(UsageError, match=f"{name}=.*whole number of at least 1"):
        widths_by_macs(graph, axes, scores_of(axes), 0.5, **{name: value})


@given(keep=st.integers(1, 300), align=st.integers(1, 64), size=st.integers(1, 300))
def test_aligned_is_the_next_multiple_or_the_size(keep: int, align: int, size: int) -> None:
    width = aligned(min(keep, size), align, size)
    assert min(keep, size) <= width <= size
    assert width == size or (width % align == 0 and width - align < keep)


@given(size=st.integers(1, 400), align=st.integers(1, 64), floor=st.integers(1, 50), most=st.integers(2, 40))
def test_candidate_widths_are_few_multiples_with_the_size(size: int, align: int, floor: int, most: int) -> None:
    widths = candidate_widths(size, align, floor, most)
    assert list(widths) == sorted(set(widths))
    assert widths[-1] == size
    assert len(widths) <= most
    assert all(w % align == 0 for w in widths[:-1])
    assert widths[0] >= min(floor, size)
    assert widths[0] == aligned(floor, align, size)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
@pytest.mark.parametrize("align", [1, 4])
def test_the_macs_of_the_whole_network_reach_the_target(graph: Any, share: float, align: int) -> None:
    axes = chosen_axes(graph, "all")
    widths = widths_by_macs(graph, axes, scores_of(axes), share, align)
    assert graph.macs(widths) <= share * graph.macs()
    sizes = {a.id: a.size for a in axes}
    assert all(w % align == 0 or w == sizes[a] for a, w in widths.items())


def test_the_whole_of_the_macs_is_the_whole_network(graph: Any) -> None:
    axes = chosen_axes(graph, "all")
    assert widths_by_macs(graph, axes, scores_of(axes), 1) == {a.id: a.size for a in axes}


def test_what_matters_least_goes_first(graph: Any) -> None:
    axes = chosen_axes(graph, "all")
    cheap, dear = (next(a.id for a in axes if a.size == n) for n in (12, 8))
    scores = Scores({cheap: np.full(12, 1e-3), dear: np.full(8, 1e3)}, "made up")
    widths = widths_by_macs(graph, axes, scores, 0.6)
    assert widths[dear] == 8
    assert widths[cheap] < 12


def test_macs_that_cannot_be_reached_name_what_can(graph: Any) -> None:
    axes = chosen_axes(graph, "inner")
    with pytest.raises(PlanError, match="macs=0.01 cannot be reached") as error:
        widths_by_macs(graph, axes, scores_of(axes), 0.01)
    named = float(str(error.value).rpartition("at least macs=")[2].split(",")[0])
    least = graph.macs({axes[0].id: 1}) / graph.macs()
    assert least <= named < least + 1e-3
    assert widths_by_macs(graph, axes, scores_of(axes), named) == {axes[0].id: 1}
    with pytest.raises(PlanError, match="cannot be reached"):
        widths_by_macs(graph, axes, scores_of(axes), least, floor=6)


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan"), "half", None])
def test_a_share_of_macs_that_is_none_is_refused(graph: Any, share: Any) -> None:
    axes = chosen_axes(graph)
    with pytest.raises(UsageError, match="macs=.*give the share of the MACs to keep, above 0 and at most 1"):
        widths_by_macs(graph, axes, scores_of(axes), share)


def test_the_plan_keeps_the_last_of_the_order_sorted(graph: Any) -> None:
    axis = chosen_axes(graph)[0]
    scores = Scores({axis.id: np.array([5.0, 1, 9, 1, 7, 2, 8, 3, 4, 6, 0, 10])}, "made up")
    order = removal_order(scores)
    assert order[axis.id][:4] == [10, 1, 3, 5]  # ties by position
    plan = plan_of(graph, {axis.id: 4}, order)
    assert dict(plan.kept) == {axis.id: (2, 4, 6, 11)}
    assert plan.graph == graph.fingerprint


def test_an_axis_that_keeps_everything_is_not_in_the_plan(graph: Any) -> None:
    axis = chosen_axes(graph)[0]
    assert not plan_of(graph, {axis.id: 12}, {axis.id: list(range(12))}).kept


def test_normalised_scores_have_mean_one_and_dead_axes_stay_comparable() -> None:
    found = normalised(Scores({"a": np.array([1.0, 3.0]), "dead": np.zeros(3)}, "l2"), "mean")
    assert found.by_axis["a"].tolist() == [0.5, 1.5]
    assert found.by_axis["dead"].tolist() == [1.0, 1.0, 1.0]


def test_long_lists_of_names_are_cut_short() -> None:
    axes = sized(**{f"layer{i}": 4 for i in range(40)})
    with pytest.raises(UsageError, match="and 28 more"):
        widths_by_ratio(axes, {"none": 0.5})
    assert choose.MAX_WIDTHS == 32
