"""Where positions are compared: in each axis, in all, or among axes of one structure."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.core.axis import Axis, AxisMember, Scores
from paretoprune.core.errors import PlanError, UsageError
from paretoprune.pipeline.choose import aligned, widths_by_ratio
from paretoprune.pipeline.ranking import Normalise, groups_of, normalised, ranked_widths

NORMALISE = get_args(Normalise)
sizes = st.lists(st.integers(2, 40), min_size=1, max_size=5)


def axis(name: str, size: int, kind: str = "channel", *members: AxisMember) -> Axis:
    return Axis(name, size, True, "", kind, members)


def made(lengths: list[int], seed: int) -> tuple[list[Axis], Scores]:
    random = np.random.default_rng(seed)
    axes = [axis(f"a{i}", n) for i, n in enumerate(lengths)]
    return axes, Scores({a.id: random.exponential(1 + i, a.size) for i, a in enumerate(axes)}, "made up")


def by_ratio(axes: list[Axis], scores: Scores, ratio: float, align: int = 1, floor: int = 1) -> dict[str, int]:
    return ranked_widths(None, [axes], scores, ratio, None, align, floor)  # type: ignore[arg-type]


# -- normalisations ---------------------------------------------------------------------------------------------------


@given(lengths=sizes, seed=st.integers(0, 10**6), how=st.sampled_from(NORMALISE))
def test_normalising_keeps_the_order_within_an_axis_and_scores_above_zero(
    lengths: list[int], seed: int, how: Normalise
) -> None:
    _, scores = made(lengths, seed)
    found = normalised(scores, how).by_axis
    for name, before in scores.by_axis.items():
        assert (found[name] >= 0).all()
        assert np.array_equal(np.argsort(found[name], kind="stable"), np.argsort(before, kind="stable"))


@given(lengths=sizes, seed=st.integers(0, 10**6), factor=st.floats(0.1, 1000), how=st.sampled_from(NORMALISE[1:]))
def test_the_scale_of_an_axis_no_longer_matters(lengths: list[int], seed: int, factor: float, how: Normalise) -> None:
    _, scores = made(lengths, seed)
    scaled = Scores({**scores.by_axis, "a0": scores.by_axis["a0"] * factor}, "made up")
    for name, expected in normalised(scores, how).by_axis.items():
        np.testing.assert_allclose(normalised(scaled, how).by_axis[name], expected, rtol=1e-9, atol=1e-9)


def test_values_of_every_normalisation() -> None:
    scores = Scores({"a": np.array([3.0, 4.0]), "b": np.array([0.0, 8.0])}, "made up")
    expected = {
        "none": {"a": [3, 4], "b": [0, 8]},
        "mean": {"a": [6 / 7, 8 / 7], "b": [0, 2]},
        "max": {"a": [0.75, 1], "b": [0, 1]},
        "sum-of-squares": {"a": [0.6, 0.8], "b": [0, 1]},
        "gaussian": {"a": [0, 2], "b": [0, 2]},
    }
    assert set(expected) == set(NORMALISE)
    for how in NORMALISE:
        found = normalised(scores, how).by_axis
        for name in "ab":
            np.testing.assert_allclose(found[name], expected[how][name], err_msg=how)


# -- one threshold ----------------------------------------------------------------------------------------------------


@given(lengths=sizes, seed=st.integers(0, 10**6), ratio=st.floats(0, 0.95), align=st.integers(1, 8))
def test_global_removes_at_most_the_share_and_never_passes_floor_or_align(
    lengths: list[int], seed: int, ratio: float, align: int
) -> None:
    axes, scores = made(lengths, seed)
    total, least = sum(lengths), sum(aligned(1, align, n) for n in lengths)
    if total - int(total * ratio + 1e-9) < least:
        with pytest.raises(PlanError, match=r"cannot go: \d+ must stay"):
            by_ratio(axes, scores, ratio, align)
        return
    widths = by_ratio(axes, scores, ratio, align)
    assert total - sum(widths.values()) <= int(total * ratio + 1e-9)
    for a in axes:
        assert widths[a.id] == a.size or widths[a.id] % align == 0
        assert widths[a.id] >= 1
    if align == 1:
        assert total - sum(widths.values()) == int(total * ratio + 1e-9)


@given(lengths=sizes, seed=st.integers(0, 10**6), ratio=st.floats(0, 0.6))
def test_global_is_one_threshold(lengths: list[int], seed: int, ratio: float) -> None:
    axes, scores = made([n + 2 for n in lengths], seed)
    widths = by_ratio(axes, scores, ratio)
    ordered = {a.id: np.sort(scores.by_axis[a.id]) for a in axes}
    gone = [ordered[a.id][: a.size - widths[a.id]] for a in axes]
    stay = [ordered[a.id][a.size - widths[a.id] :] for a in axes if widths[a.id] > 1]  # the rest is at its floor
    if stay and sum(map(len, gone)):
        assert np.concatenate(gone).max() <= np.concatenate(stay).min()


@given(lengths=sizes, seed=st.integers(0, 10**6), ratio=st.floats(0, 0.5), align=st.integers(1, 4))
def test_an_axis_by_itself_is_the_local_ranking(lengths: list[int], seed: int, ratio: float, align: int) -> None:
    axes, scores = made(lengths, seed)
    if any(n - int(n * ratio + 1e-9) < aligned(1, align, n) for n in lengths):
        return
    found = ranked_widths(None, [[a] for a in axes], scores, ratio, None, align)  # type: ignore[arg-type]
    assert found == widths_by_ratio(axes, ratio, align)


def test_the_least_important_axis_pays() -> None:
    axes = [axis("weak", 10), axis("strong", 10)]
    scores = Scores({"weak": np.linspace(1, 2, 10), "strong": np.linspace(3, 4, 10)}, "made up")
    assert by_ratio(axes, scores, 0.4) == {"weak": 2, "strong": 10}
    assert by_ratio(axes, scores, 0.6) == {"weak": 1, "strong": 7}
    assert by_ratio(axes, scores, 0.4, floor=5) == {"weak": 5, "strong": 7}
    assert by_ratio(axes, scores, 0.4, align=4) == {"weak": 4, "strong": 8}


# -- groups -----------------------------------------------------------------------------------------------------------


def test_isomorphic_groups_by_kind_and_structure_not_by_width() -> None:
    def entries(n: int) -> np.ndarray[Any, Any]:
        return np.arange(n)[:, None]

    tensors = {
        "conv3": torch.zeros(8, 4, 3, 3),
        "wide3": torch.zeros(16, 8, 3, 3),
        "conv1": torch.zeros(8, 4, 1, 1),
        "linear": torch.zeros(8, 4),
    }
    axes = [axis(n, len(t), "channel", AxisMember(n, 0, "out", entries(len(t)))) for n, t in tensors.items()]
    axes.append(axis("heads", 8, "heads", AxisMember("linear", 0, "out", entries(8))))
    names = [[a.id for a in group] for group in groups_of("isomorphic", axes, tensors)]
    assert names == [["conv3", "wide3"], ["conv1"], ["linear"], ["heads"]]
    assert [len(g) for g in groups_of("global", axes, tensors)] == [5]
    assert [len(g) for g in groups_of("local", axes, tensors)] == [1] * 5
    assert groups_of("global", [], tensors) == []


# -- in pp.prune ------------------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Three 3×3 convolutions of 12, 16 and 8 channels, a hidden layer of 20; the second is ten times as large.

    The third is read by a linear layer, so it has a structure of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 12, 3), nn.Conv2d(12, 16, 3)
        self.three = nn.Conv2d(16, 8, 3)
        self.hidden, self.head = nn.Linear(8, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.three(torch.relu(self.two(torch.relu(self.one(x))))))
        result: Tensor = self.head(torch.relu(self.hidden(x.mean((2, 3)))))
        return result


@pytest.fixture(scope="module")
def mixed() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mixed().eval()
    with torch.no_grad():
        model.two.weight.mul_(10)
        model.two.bias.mul_(10)
    return model, torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def widths(pruned: pp.Pruned) -> tuple[int, ...]:
    model = pruned.model
    return (*(c.out_channels for c in (model.one, model.two, model.three)), model.hidden.out_features)


def test_rankings_differ_as_they_should(mixed: tuple[nn.Module, Tensor]) -> None:
    model, x = mixed
    assert widths(pp.prune(model, x, ratio=0.25, ranking="local")) == (9, 12, 6, 15)
    assert widths(pp.prune(model, x, ratio=0.25)) == (9, 12, 6, 15)
    raw = widths(pp.prune(model, x, ratio=0.25, ranking="global", normalise="none"))
    assert raw[1] == 16
    assert sum(raw) == 42
    mean = widths(pp.prune(model, x, ratio=0.25, ranking="global"))
    assert sum(mean) == 42
    assert mean[1] < 16
    same = widths(pp.prune(model, x, ratio=0.25, ranking="isomorphic", normalise="none"))
    assert same == (5, 16, 6, 15)  # the first two share a threshold, the others have one each


@pytest.mark.parametrize("ranking", [None, "local", "global", "isomorphic"])
def test_every_ranking_reaches_the_macs(ranking: Any, mixed: tuple[nn.Module, Tensor]) -> None:
    model, x = mixed
    pruned = pp.prune(model, x, macs=0.5, ranking=ranking)
    assert 0.35 < pruned.macs / pruned.original_macs <= 0.5


def test_macs_below_every_floor_are_refused(mixed: tuple[nn.Module, Tensor]) -> None:
    with pytest.raises(PlanError, match=r"macs=0\.001 cannot be reached: with these axes at their floor, 0\.014"):
        pp.prune(*mixed, macs=0.001, ranking="global")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ratio": 0.5, "ranking": "worldwide"}, "ranking='worldwide': give one of 'local', 'global', 'isomorphic'"),
        ({"ratio": 0.5, "ranking": "global", "normalise": "median"}, "normalise='median': give one of 'none', 'mean'"),
        ({"ratio": 0.5, "normalise": "max"}, "normalise='max' has no effect where every axis is ranked by itself"),
        ({"macs": 0.5, "ranking": "local", "normalise": "max"}, "has no effect"),
        ({"ratio": {"one": 0.5}, "ranking": "global"}, "one ratio for all axes: give a number, or ranking='local'"),
        ({"ratio": 1.5, "ranking": "global"}, "ratio=1.5: give the share of positions to remove"),
        ({"macs": 1.5, "ranking": "global"}, "macs=1.5: give the share of the MACs to keep"),
        ({"ratio": 0.5, "ranking": "global", "align": 0}, "align=0: give a whole number"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: Any, says: str, mixed: tuple[nn.Module, Tensor]) -> None:
    with pytest.raises(UsageError, match=says):
        pp.prune(*mixed, **options)


def test_a_ratio_that_the_floors_forbid_names_what_goes(mixed: tuple[nn.Module, Tensor]) -> None:
    with pytest.raises(PlanError, match=r"56 positions of 'one' and 3 more axes cannot go: 44 must stay") as error:
        pp.prune(*mixed, ratio=0.5, ranking="global", floor=12)
    assert "give at most ratio=0.214" in str(error.value)
