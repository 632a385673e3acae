"""SparseGPT's update against exact least squares on what stays, and exact Optimal Brain Surgeon, row by row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paretoprune.core.errors import PlanError
from paretoprune.recover.surgeon import COLUMNS, damages, pruned_by_surgeon


def problem(outputs: int, inputs: int, seed: int) -> tuple[Tensor, Tensor]:
    """A weight and the damped moments of inputs that depend on one another."""
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * inputs, inputs, generator=made).double() @ torch.randn(inputs, inputs, generator=made).double()
    moment = x.T @ x / len(x)
    moment.diagonal().add_(1e-2 * float(moment.diagonal().mean()))
    return torch.randn(outputs, inputs, generator=made).double(), moment


def energy(change: Tensor, moment: Tensor) -> float:
    return float(((change @ moment) * change).sum())


def exact(weight: Tensor, moment: Tensor, mask: Tensor) -> Tensor:
    """The best weights on each row's own columns."""
    best = torch.zeros_like(weight)
    for row, keep in enumerate(mask):
        left = keep.nonzero().flatten()
        best[row, left] = torch.linalg.solve(moment[left][:, left], moment[left] @ weight[row])
    return best


def surgeon_of(weight: Tensor, moment: Tensor, count: int) -> Tensor:
    """Optimal Brain Surgeon as it is written: of every row, the cheapest weight goes and all others follow, again."""
    result = weight.clone()
    for row in result:
        left = list(range(len(row)))
        for _ in range(count):
            inverse = torch.linalg.inv(moment[left][:, left])
            cheapest = int(torch.argmin(row[left].square() / inverse.diagonal()))
            row[left] -= row[left[cheapest]] / inverse[cheapest, cheapest] * inverse[:, cheapest]
            row[left.pop(cheapest)] = 0.0
    return result


def fixed(mask: Tensor) -> object:
    return lambda start, scores: mask[:, start : start + scores.shape[1]]


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(2, 12), st.integers(0, 99))
def test_zeros_are_where_they_were_chosen_and_least_squares_is_best(outputs: int, inputs: int, seed: int) -> None:
    weight, moment = problem(outputs, inputs, seed)
    mask = torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(seed)) < 0.5
    found = pruned_by_surgeon(weight, moment, fixed(mask))
    assert bool((found[~mask] == 0).all())
    assert energy(exact(weight, moment, mask) - weight, moment) <= energy(found - weight, moment) + 1e-9


def test_on_the_last_columns_it_is_exact() -> None:
    """Columns before the first zero cannot follow; where the zeros come first, all that stays can."""
    weight, moment = problem(6, 10, 3)
    mask = torch.ones(6, 10, dtype=torch.bool)
    mask[:, :4] = False
    found = pruned_by_surgeon(weight, moment, fixed(mask))
    torch.testing.assert_close(found, exact(weight, moment, mask))


def test_groups_of_columns_give_what_one_group_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moment = problem(5, 24, 4)
    mask = torch.rand(5, 24, generator=torch.Generator().manual_seed(0)) < 0.4
    whole = pruned_by_surgeon(weight, moment, fixed(mask))
    monkeypatch.setattr("paretoprune.recover.surgeon.COLUMNS", 7)
    torch.testing.assert_close(pruned_by_surgeon(weight, moment, fixed(mask), step=2), whole)
    assert COLUMNS == 128


def test_the_damage_is_what_a_removal_costs() -> None:
    weight, moment = problem(3, 7, 5)
    scores = damages(weight, moment)
    for column in range(7):
        mask = torch.ones(3, 7, dtype=torch.bool)
        mask[:, column] = False
        change = exact(weight, moment, mask) - weight
        torch.testing.assert_close(((change @ moment) * change).sum(1) / 2, scores[:, column])


def test_between_plain_removal_and_the_exact_surgeon() -> None:
    weight, moment = problem(8, 20, 6)

    def half(start: int, scores: Tensor) -> Tensor:
        return scores > scores.median(1, keepdim=True).values

    found = pruned_by_surgeon(weight, moment, half)
    mask = found != 0
    lost, plain = energy(found - weight, moment), energy(weight * mask - weight, moment)
    assert energy(exact(weight, moment, mask) - weight, moment) < lost < 0.7 * plain
    assert energy(surgeon_of(weight, moment, 10) - weight, moment) < lost
    assert bool(((found == 0).sum(1) == 10).all())


def test_moments_of_another_size_are_refused() -> None:
    with pytest.raises(PlanError, match=r"5 columns, its moments \(4, 4\)"):
        pruned_by_surgeon(torch.ones(2, 5), torch.eye(4).double(), lambda start, scores: scores > 0)
