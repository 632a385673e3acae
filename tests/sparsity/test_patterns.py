"""Masks: what each pattern promises, for any scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from paretoprune.core.errors import ModelError, UsageError
from paretoprune.sparsity import (
    Block,
    NofM,
    Unstructured,
    mask_above,
    mask_of,
    masks_of,
    matrix_of,
    pattern_of,
    weight_of,
)

Array = np.ndarray[Any, Any]
few = settings(max_examples=30)
shapes = arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)
scores = arrays.arrays(np.float32, shapes, elements=st.floats(0, 1, width=32))
blocks = st.builds(Block, st.integers(1, 20), st.integers(1, 6))
shares = st.floats(0, 1)


@few
@given(scores, blocks, shares)
def test_blocks_stay_or_go_whole_within_the_budget(given: Array, block: Block, share: float) -> None:
    mask = mask_of(block, given, share)
    for i in range(0, given.shape[0], block.rows):
        for j in range(0, given.shape[1], block.columns):
            assert len(np.unique(mask[i : i + block.rows, j : j + block.columns])) == 1
    removed = given.size - mask.sum()
    assert removed <= share * given.size + 1e-6
    assert removed > share * given.size - block.rows * block.columns - 1e-6


@few
@given(scores, blocks, shares)
def test_what_stays_scores_no_lower_than_what_goes(given: Array, block: Block, share: float) -> None:
    mask, units = mask_of(block, given, share), block.units(given)
    kept = mask[:: block.rows, :: block.columns]
    if kept.any() and not kept.all():
        assert units[kept].min() >= units[~kept].max()


@few
@given(scores, shares, shares)
def test_a_higher_sparsity_removes_the_same_and_more(given: Array, one: float, other: float) -> None:
    low, high = (mask_of(Unstructured(), given, share) for share in sorted((one, other)))
    assert not (high & ~low).any()


@few
@given(scores, st.integers(1, 5), st.integers(1, 5))
def test_n_of_m(given: Array, n: int, more: int) -> None:
    m = n + more
    mask = mask_of(NofM(n, m), given)
    for j in range(0, given.shape[1], m):
        group, kept = given[:, j : j + m], mask[:, j : j + m]
        assert (kept.sum(axis=1) == min(n, group.shape[1])).all()
        for line, stays in zip(group, kept, strict=True):
            assert line[stays].min(initial=2) >= line[~stays].max(initial=-1)


@few
@given(scores, st.floats(0, 1))
def test_a_threshold_is_plain(given: Array, threshold: float) -> None:
    assert np.array_equal(mask_above(Unstructured(), given - 0.5, threshold), np.abs(given - 0.5) > threshold)
    both = mask_above(NofM(2, 4), given, threshold)
    assert np.array_equal(both, mask_of(NofM(2, 4), given) & (given > threshold))


@few
@given(st.lists(scores, min_size=1, max_size=4), blocks, shares)
def test_one_budget_for_all_layers(given: list[Array], block: Block, share: float) -> None:
    layers = {str(i): each for i, each in enumerate(given)}
    masks = masks_of(dict.fromkeys(layers, block), layers, share)
    size = sum(each.size for each in given)
    removed = size - sum(int(mask.sum()) for mask in masks.values())
    assert share * size - block.rows * block.columns - 1e-6 < removed <= share * size + 1e-6
    kept = [block.units(layers[n])[masks[n][:: block.rows, :: block.columns]] for n in layers]
    gone = [block.units(layers[n])[~masks[n][:: block.rows, :: block.columns]] for n in layers]
    assert np.concatenate(kept).min(initial=2) >= np.concatenate(gone).max(initial=-1)


@few
@given(arrays.array_shapes(min_dims=2, max_dims=5, max_side=5))
def test_a_weight_comes_back_from_its_matrix(shape: tuple[int, ...]) -> None:
    weight = np.arange(np.prod(shape)).reshape(shape)
    assert np.array_equal(weight_of(matrix_of(weight), shape), weight)


def test_neighbouring_inputs_are_channels_of_one_tap() -> None:
    weight = np.arange(2 * 3 * 4).reshape(1, 2, 3, 4)
    assert matrix_of(weight)[0, :4].tolist() == [0, 12, 1, 13]


def test_names() -> None:
    for name, pattern in {"unstructured": Unstructured(), "2:4": NofM(2, 4), "16x1": Block(16, 1)}.items():
        assert pattern_of(name) == pattern
        assert pattern_of(pattern) is pattern
        assert str(pattern) == name


@pytest.mark.parametrize("name", ["", "2:4:8", "4:4", "0:4", "0x4", "16", "16x", "-1x4", "dense", " 2:4"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError):
        pattern_of(name)


@pytest.mark.parametrize("sparsity", [None, -0.1, 1.1, float("nan")])
def test_a_sparsity_must_be_a_share(sparsity: float | None) -> None:
    with pytest.raises(UsageError, match="sparsity="):
        mask_of(Block(4, 1), np.ones((4, 4)), sparsity)


@pytest.mark.parametrize("threshold", [-1.0, float("nan"), float("inf")])
def test_a_threshold_must_be_a_size(threshold: float) -> None:
    with pytest.raises(UsageError, match="threshold="):
        mask_above(Unstructured(), np.ones((4, 4)), threshold)


def test_n_of_m_has_its_own_sparsity() -> None:
    assert mask_of(NofM(2, 4), np.ones((4, 8)), 0.5).sum() == 16
    with pytest.raises(UsageError, match=r"it has 0\.5"):
        mask_of(NofM(2, 4), np.ones((4, 4)), 0.8)
    with pytest.raises(UsageError, match="'fc'.*cannot share a budget"):
        masks_of({"fc": NofM(2, 4)}, {"fc": np.ones((4, 4))}, 0.5)


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ModelError, match="1 of 4 scores"):
        mask_of(Unstructured(), np.array([[1, 2], [3, np.nan]]), 0.5)
    with pytest.raises(UsageError, match="matrix"):
        mask_of(Unstructured(), np.ones(3), 0.5)
