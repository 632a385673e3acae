from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paretoprune.core.errors import PlanError
from paretoprune.recover import Elimination, Gram, order_by_error, order_jointly, reconstruct, reconstruction_error


def case(seed: int, positions: int, taps: int, extra: int = 0) -> tuple[Tensor, Gram, Tensor]:
    made = torch.Generator().manual_seed(seed)
    columns = positions * taps + extra
    x = torch.randn(300, columns, generator=made) @ torch.randn(columns, columns, generator=made)
    x = (x + torch.randn(columns, generator=made)).double()
    groups = torch.arange(positions * taps).reshape(positions, taps)
    return torch.randn(5, columns, generator=made), Gram(x.T @ x / len(x), x.mean(0), len(x)), groups


shapes = st.tuples(st.integers(0, 10_000), st.integers(2, 7), st.integers(1, 3), st.integers(0, 2), st.booleans())


def left_after(groups: Tensor, columns: int, gone: np.ndarray) -> Tensor:
    mask = torch.ones(columns, dtype=torch.bool)
    mask[groups[torch.from_numpy(gone)].reshape(-1)] = False
    return mask.nonzero().flatten()


@given(shapes, st.integers(1, 3))
def test_error_of_every_step_equals_the_direct_solve(shape: tuple[int, int, int, int, bool], at_once: int) -> None:
    seed, positions, taps, extra, intercept = shape
    weight, gram, groups = case(seed, positions, taps, extra)
    order = order_by_error(weight, gram, groups, intercept=intercept, at_once=at_once)
    assert sorted(order.positions) == list(range(positions))
    for i in range(positions):
        left = left_after(groups, weight.shape[1], order.positions[: i + 1])
        direct = reconstruction_error(weight, gram, left, intercept=intercept) if len(left) else 1.0
        assert order.error[i] == pytest.approx(direct, rel=1e-4, abs=1e-6)
    assert (np.diff(order.error) >= -1e-9).all()


@given(st.integers(0, 10_000))
def test_every_step_takes_the_cheapest_position(seed: int) -> None:
    weight, gram, groups = case(seed, 5, 2)
    order = order_by_error(weight, gram, groups)
    gone: list[int] = []
    for step, position in enumerate(order.positions[:-1]):
        direct = {
            p: reconstruction_error(weight, gram, left_after(groups, 10, np.array([*gone, p])))
            for p in range(5)
            if p not in gone
        }
        assert direct[int(position)] == pytest.approx(min(direct.values()), rel=1e-4, abs=1e-7), step
        gone.append(int(position))


def test_weights_along_the_way_are_those_of_reconstruct() -> None:
    weight, gram, groups = case(1, 6, 3)
    elimination = Elimination(weight, gram, groups)
    elimination.remove([4])
    elimination.remove([0, 2])
    left = left_after(groups, 18, np.array([4, 0, 2]))
    columns, found = elimination.left()
    at = columns.argsort()
    assert columns[at].tolist() == sorted(left.tolist())
    torch.testing.assert_close(found[:, at].float(), reconstruct(weight, gram, left).weight, rtol=1e-4, atol=1e-4)
    assert torch.isinf(elimination.costs()[[0, 2, 4]]).all()


def test_a_copy_of_another_channel_goes_first_and_costs_nothing() -> None:
    weight, gram, groups = case(2, 6, 1)
    made = torch.Generator().manual_seed(9)
    x = torch.randn(500, 6, generator=made).double()
    x[:, 3] = 2 * x[:, 5] + 1
    gram = Gram(x.T @ x / 500, x.mean(0), 500)
    order = order_by_error(weight, gram, groups, damping=1e-8)
    assert order.positions[0] in (3, 5)
    assert order.error[0] < 1e-6
    assert order.error[1] > 1e-3


def test_joint_order_weighs_all_consumers() -> None:
    weight, gram, groups = case(3, 6, 1)
    loud, deaf = weight.clone(), weight.clone()
    loud[:, 2] *= 100
    deaf[:, 2] = 0
    alone = order_by_error(deaf, gram, groups)
    joint = order_jointly([Elimination(w, gram, groups) for w in (deaf, loud)])
    assert list(joint.positions).index(2) > list(alone.positions).index(2)
    assert joint.error[-1] == pytest.approx(1.0)


def test_zero_weights_cost_nothing() -> None:
    weight, gram, groups = case(4, 3, 1)
    assert order_by_error(weight * 0, gram, groups).error.tolist() == [0, 0, 0]


def test_refusals() -> None:
    weight, gram, groups = case(5, 4, 2)
    for wrong in (groups.flatten(), groups + 2, torch.zeros(4, 2, dtype=torch.long)):
        with pytest.raises(PlanError, match="disjoint columns of 8"):
            order_by_error(weight, gram, wrong)
    with pytest.raises(PlanError, match=r"\[2, 4\]"):
        order_jointly([Elimination(weight, gram, groups), Elimination(weight, gram, groups[:2])])
