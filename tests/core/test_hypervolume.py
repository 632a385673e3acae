"""The exact hypervolume against known volumes, Monte Carlo, and its own laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from paretoprune.core.hypervolume import hypervolume


def _points(objectives: int) -> st.SearchStrategy[np.ndarray]:
    grid = st.integers(0, 12).map(lambda v: v / 8)
    return st.integers(0, 7).flatmap(lambda n: hnp.arrays(np.float64, (n, objectives), elements=grid))


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@given(data=st.data())
def test_it_is_the_number_of_dominated_grid_cells(objectives: int, data: st.DataObject) -> None:
    """All coordinates are multiples of 1/8, so the volume is a count of cells: an exact reference."""
    points = data.draw(_points(objectives))
    centres = (np.indices((8,) * objectives).reshape(objectives, -1).T + 0.5) / 8
    dominated = (points[None] <= centres[:, None]).all(axis=2).any(axis=1)
    assert hypervolume(points, np.ones(objectives)) == pytest.approx(dominated.mean(), abs=1e-12)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_it_agrees_with_monte_carlo(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    points = rng.uniform(0.1, 1.1, (25, objectives))
    samples = rng.uniform(0, 1, (100_000, objectives))
    share = (points[None] <= samples[:, None]).all(axis=2).any(axis=1).mean()
    error = 4 * np.sqrt(share * (1 - share) / len(samples))
    assert hypervolume(points, np.ones(objectives)) == pytest.approx(share, abs=error)


@given(_points(3))
def test_order_and_repetition_do_not_matter_and_more_points_never_hurt(points: np.ndarray) -> None:
    one = np.ones(3)
    whole = hypervolume(points, one)
    assert hypervolume(np.concatenate([points[::-1], points]), one) == pytest.approx(whole)
    assert hypervolume(points[:-1], one) <= whole + 1e-12
    assert hypervolume(points[:, ::-1], one) == pytest.approx(whole)


def test_known_volumes() -> None:
    assert hypervolume(np.array([[0.0, 0.0, 0.0]]), np.array([2.0, 3.0, 4.0])) == 24
    assert hypervolume(np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]]), np.array([3.0, 3.0])) == 6
    assert hypervolume(np.empty((0, 2)), np.ones(2)) == 0
    assert hypervolume(np.array([[1.0, 0.0]]), np.ones(2)) == 0
