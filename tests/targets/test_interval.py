from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paretoprune.targets.interval import Series, low_quantile, median, middle_mean

samples = arrays(np.float64, st.integers(10, 60), elements=st.floats(0.1, 100))


@given(samples, st.sampled_from([median, low_quantile, middle_mean]), st.sampled_from([1, 5, 10]))
def test_it_lies_within_the_samples_and_is_repeatable(values, statistic, block):
    series = Series(values, statistic, block)
    low, high = series.interval(seed=3)
    assert values.min() * (1 - 1e-12) <= low <= high <= values.max() * (1 + 1e-12)  # a mean is rounded
    assert (low, high) == series.interval(seed=3)


@given(samples, st.floats(0.01, 100))
def test_it_scales_with_the_unit(values, factor):
    low, high = Series(values, median, 10).interval()
    assert Series(values * factor, median, 10).interval() == pytest.approx((low * factor, high * factor))


@pytest.mark.parametrize("statistic", [median, middle_mean])
def test_it_covers_the_truth_about_as_often_as_it_says(statistic):
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        low, high = Series(rng.normal(1.0, 0.1, 50), statistic, 5).interval(seed)
        inside += low <= 1.0 <= high
    assert inside >= 180


def test_neighbours_that_agree_widen_it():
    """Twenty loads of a network that differ from each other, ten equal samples each, are twenty samples, not 200."""
    grouped = np.repeat(np.random.default_rng(0).normal(1.0, 0.1, 20), 10)
    assert Series(grouped, median, 10).spread() > 1.5 * Series(grouped, median, 1).spread()


def test_more_samples_narrow_it():
    rng = np.random.default_rng(0)
    values = rng.normal(1.0, 0.1, 1600)
    assert Series(values, median, 10).spread() < 0.5 * Series(values[:100], median, 10).spread()
