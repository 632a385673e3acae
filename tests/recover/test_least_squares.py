from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paretoprune.core.errors import PlanError
from paretoprune.recover import Gram, reconstruct, reconstruction_error
from paretoprune.recover.least_squares import moments


def gram_of(x: Tensor) -> Gram:
    x = x.double()
    return Gram(x.T @ x / len(x), x.mean(0), len(x))


def problem(seed: int, columns: int = 10, outputs: int = 6, rows: int = 200) -> tuple[Tensor, Tensor]:
    """Weights (outputs, columns) and correlated rows (rows, columns) with a mean."""
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=made) @ torch.randn(columns, columns, generator=made)
    return torch.randn(outputs, columns, generator=made), x + torch.randn(columns, generator=made)


def subset(seed: int, columns: int, size: int) -> Tensor:
    return torch.randperm(columns, generator=torch.Generator().manual_seed(seed + 1))[:size].sort().values


def loss(weight: Tensor, new: Tensor, shift: Tensor | None, x: Tensor, kept: Tensor) -> float:
    difference = x.double() @ weight.double().T - x[:, kept].double() @ new.double().T
    if shift is not None:
        difference = difference - shift
    return float(difference.square().sum(1).mean())


seeds = st.integers(0, 10_000)


@given(seeds, st.integers(1, 9), st.booleans())
def test_never_worse_than_plain_removal(seed: int, size: int, intercept: bool) -> None:
    weight, x = problem(seed)
    kept = subset(seed, 10, size)
    for damping in (1e-6, 1e-2, 1.0):
        found = reconstruct(weight, gram_of(x), kept, intercept=intercept, damping=damping)
        plain = loss(weight, weight[:, kept], None, x, kept)
        assert loss(weight, found.weight, found.shift, x, kept) <= plain * (1 + 1e-5)


@given(seeds, st.integers(2, 8))
def test_exact_where_removed_columns_are_combinations_of_the_kept(seed: int, size: int) -> None:
    weight, x = problem(seed)
    kept = subset(seed, 10, size)
    gone = torch.tensor([c for c in range(10) if c not in kept.tolist()])
    made = torch.Generator().manual_seed(seed + 2)
    x[:, gone] = x[:, kept] @ torch.randn(size, len(gone), generator=made) + torch.randn(len(gone), generator=made)
    found = reconstruct(weight.double(), gram_of(x), kept, damping=1e-9)
    total = float((x @ weight.T).var(0, correction=0).sum())
    assert loss(weight, found.weight, found.shift, x, kept) < 1e-5 * total
    assert found.error < 1e-5


@given(seeds, st.integers(1, 9))
def test_it_is_the_least_squares_answer(seed: int, size: int) -> None:
    weight, x = problem(seed)
    kept = subset(seed, 10, size)
    x, weight = x.double(), weight.double()
    found = reconstruct(weight, gram_of(x), kept, damping=1e-10)
    design = torch.cat([x[:, kept], torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    answer = torch.linalg.lstsq(design, x @ weight.T).solution
    torch.testing.assert_close(found.weight, answer[:-1].T, rtol=1e-3, atol=1e-4)
    assert found.shift is not None
    torch.testing.assert_close(found.shift, answer[-1], rtol=1e-3, atol=1e-3)


@given(seeds, st.booleans())
def test_error_falls_as_more_is_kept(seed: int, intercept: bool) -> None:
    weight, x = problem(seed)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    errors = [reconstruction_error(weight, gram_of(x), order[:n], intercept=intercept) for n in range(1, 11)]
    assert all(0 <= e <= 1 for e in errors)
    assert all(more <= less + 1e-9 for less, more in pairwise(errors))
    assert errors[-1] == 0


def test_error_is_the_share_of_energy_that_is_lost() -> None:
    weight, x = problem(0, rows=5000)
    kept = torch.arange(4)
    found = reconstruct(weight, gram_of(x), kept, damping=1e-9)
    total = float((x.double() @ weight.double().T).var(0, correction=0).sum())
    assert found.error == pytest.approx(loss(weight, found.weight, found.shift, x, kept) / total, rel=1e-4)


def test_all_kept_changes_nothing_in_any_order() -> None:
    weight, x = problem(3)
    kept = torch.randperm(10)
    found = reconstruct(weight, gram_of(x), kept)
    assert torch.equal(found.weight, weight[:, kept])
    assert found.shift is not None
    assert float(found.shift.abs().max()) == 0


def test_without_intercept_there_is_no_shift_and_the_intercept_helps() -> None:
    weight, x = problem(4)
    kept = torch.arange(5)
    with_, without = (reconstruct(weight, gram_of(x), kept, intercept=i) for i in (True, False))
    assert without.shift is None
    assert loss(weight, with_.weight, with_.shift, x, kept) < loss(weight, without.weight, None, x, kept)


def test_dead_and_constant_inputs() -> None:
    weight = torch.randn(3, 4)
    constant = torch.tensor([[0.0, 2.0, 0.0, 1.0]]).expand(50, 4)
    found = reconstruct(weight, gram_of(constant), torch.tensor([0, 2]))
    assert found.shift is not None
    torch.testing.assert_close(found.weight, weight[:, [0, 2]])
    torch.testing.assert_close(found.shift, (weight @ constant[0]).double())


def test_fewer_rows_than_columns_is_solved() -> None:
    weight, x = problem(5, columns=40, rows=10)
    found = reconstruct(weight, gram_of(x), torch.arange(20), damping=0.0)
    assert torch.isfinite(found.weight).all()


def test_type_is_kept() -> None:
    weight, x = problem(6)
    assert reconstruct(weight.half(), gram_of(x), torch.arange(3)).weight.dtype == torch.float16


def test_damping_is_relative_to_the_mean_diagonal() -> None:
    _, x = problem(7)
    gram = gram_of(x)
    added = moments(gram, False, 0.01) - gram.second
    torch.testing.assert_close(added, torch.eye(10).double() * gram.second.diagonal().mean() * 0.01)
    assert torch.equal(gram.second, gram_of(x).second)


@pytest.mark.parametrize("kept", [[], [0, 0], [10], [-1]])
def test_columns_that_are_not_there(kept: list[int]) -> None:
    weight, x = problem(8)
    with pytest.raises(PlanError, match="kept columns"):
        reconstruct(weight, gram_of(x), torch.tensor(kept, dtype=torch.long))
    with pytest.raises(PlanError, match="9 columns, its Gram matrix 10"):
        reconstruct(weight[:, :9], gram_of(x), torch.tensor([0]))


def test_inputs_that_never_vary_leave_the_weights_as_they_are() -> None:
    matrix, one = torch.randn(3, 5), torch.randn(1, 5, dtype=torch.double)
    second, mean = (one.T @ one), one[0]
    for noise in (0.0, 1e-17, -1e-17):
        gram = Gram(second + noise * torch.eye(5), mean, 1)
        found = reconstruct(matrix, gram, torch.tensor([0, 2, 3]))
        torch.testing.assert_close(found.weight, matrix[:, [0, 2, 3]], rtol=1e-3, atol=1e-3)
