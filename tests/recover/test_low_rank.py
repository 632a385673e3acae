"""Factors: what they lose is what theory says, whatever the data; never more than without data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from paretoprune import recover
from paretoprune.core.errors import PlanError
from paretoprune.recover.gram import Gram
from paretoprune.recover.low_rank import DAMPING, damped, factorise, factorise_space, rank_errors

sizes = st.integers(1, 9)


def matrix(rows: int, columns: int, seed: int) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -2, columns, dtype=torch.float64)
    return torch.randn(rows, columns, generator=made, dtype=torch.float64) * scale


def gram_of(rows: Tensor) -> Gram:
    return Gram(rows.T @ rows / len(rows), rows.mean(0), len(rows))


def inputs(columns: int, seed: int, directions: int | None = None, count: int = 64) -> Tensor:
    """Rows that vary in `directions` directions only, around a mean that is not zero."""
    made = torch.Generator().manual_seed(seed + 1)
    mix = torch.randn(directions or columns, columns, generator=made, dtype=torch.float64)
    return torch.randn(count, len(mix), generator=made, dtype=torch.float64) @ mix + 2 * mix.sum(0)


def lost(weight: Tensor, factors: recover.Factors, rows: Tensor) -> float:
    """Mean square of what the outputs lose on these rows, the constant taken up."""
    gone = rows @ (weight - factors.second @ factors.first).T
    shift = torch.zeros(len(weight), dtype=gone.dtype) if factors.shift is None else factors.shift
    return float((gone - shift).square().sum(1).mean())


@given(sizes, sizes, st.integers(0, 99), st.booleans(), st.booleans())
def test_full_rank_is_the_matrix(outputs: int, columns: int, seed: int, data: bool, intercept: bool) -> None:
    weight = matrix(outputs, columns, seed)
    gram = gram_of(inputs(columns, seed)) if data else None
    made = factorise(weight, min(outputs, columns), gram, intercept=intercept)
    torch.testing.assert_close(made.second @ made.first, weight, rtol=1e-9, atol=1e-9)
    assert made.error == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(made.first.norm(dim=1), made.second.norm(dim=0), rtol=1e-6, atol=1e-9)


@given(sizes, sizes, st.integers(0, 99), st.data())
def test_the_error_is_the_tail_of_the_singular_values(outputs: int, columns: int, seed: int, data: Any) -> None:
    rank = data.draw(st.integers(1, min(outputs, columns)))
    weight = matrix(outputs, columns, seed)
    values = torch.linalg.svdvals(weight).square()
    made = factorise(weight, rank)
    assert float((weight - made.second @ made.first).square().sum()) == pytest.approx(
        float(values[rank:].sum()), rel=1e-6, abs=1e-12
    )
    assert made.error == pytest.approx(float(values[rank:].sum() / values.sum()), abs=1e-12)
    errors = rank_errors(weight)
    assert errors[rank] == pytest.approx(made.error, abs=1e-12)
    assert errors[0] == 1
    assert errors[-1] == 0


@given(sizes, sizes, st.integers(0, 99), st.booleans(), st.data())
def test_in_the_metric_of_the_inputs(outputs: int, columns: int, seed: int, intercept: bool, data: Any) -> None:
    """σ² of W C^{1/2} that are left out, against a square root that is made in another way."""
    rank = data.draw(st.integers(1, min(outputs, columns)))
    weight, rows = matrix(outputs, columns, seed), inputs(columns, seed)
    gram = gram_of(rows)
    made = factorise(weight, rank, gram, intercept=intercept)
    energy, vectors = torch.linalg.eigh(gram.centred() if intercept else gram.second)
    values = torch.linalg.svdvals(weight @ vectors * energy.clamp_min(0).sqrt()).square()
    total = float(values.sum())
    assert lost(weight, made, rows) == pytest.approx(float(values[rank:].sum()), rel=1e-3, abs=1e-4 * total)
    assert made.error == pytest.approx(float(values[rank:].sum()) / total, rel=1e-3, abs=1e-4)


@given(sizes, st.integers(2, 9), st.integers(0, 99), st.booleans(), st.data())
def test_never_worse_than_without_data(outputs: int, columns: int, seed: int, intercept: bool, data: Any) -> None:
    rank = data.draw(st.integers(1, min(outputs, columns)))
    directions = data.draw(st.integers(1, columns))
    weight, rows = matrix(outputs, columns, seed), inputs(columns, seed, directions)
    gram = gram_of(rows)
    aware, plain = factorise(weight, rank, gram, intercept=intercept), factorise(weight, rank)
    if intercept:  # the plain factors with the constant that suits them best
        plain = replace(plain, shift=(weight - plain.second @ plain.first) @ gram.mean)
    assert torch.isfinite(aware.first).all()
    assert torch.isfinite(aware.second).all()
    scale = float(rows.square().mean()) * float(weight.square().sum())
    assert lost(weight, aware, rows) <= lost(weight, plain, rows) * (1 + 1e-6) + 10 * DAMPING * scale


def test_what_never_varies_counts_a_little_and_zeros_do_no_harm() -> None:
    weight = matrix(6, 8, 0).float()
    still = Gram(torch.zeros(8, 8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64), 10)
    aware, plain = factorise(weight, 3, still), factorise(weight, 3)
    torch.testing.assert_close(aware.second @ aware.first, plain.second @ plain.first, rtol=1e-4, atol=1e-5)
    nothing = factorise(torch.zeros(6, 8), 3, still)
    assert nothing.error == 0
    assert torch.equal(nothing.second @ nothing.first, torch.zeros(6, 8))


@pytest.mark.parametrize("intercept", [False, True])
def test_one_sample_has_no_covariance_but_what_rounding_makes(intercept: bool) -> None:
    row = torch.linspace(-3, 900, 12)
    gram = Gram(torch.outer(row, row).double(), row.double() * (1 + 1e-7), 1)
    weight = matrix(6, 12, 0)
    factors = [factorise(weight, 3, gram, intercept=intercept)]
    factors.append(factorise_space(weight.reshape(6, 2, 2, 3), 3, gram, intercept=intercept))
    for made in factors:
        assert torch.isfinite(made.first).all()
        assert torch.isfinite(made.second).all()
        assert 0 <= made.error <= 1
    assert (factors[0].second @ factors[0].first).abs().max() < 2 * weight.abs().max()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(PlanError, match=r"rank 5 is not within 1 to 4 of a matrix \(4, 6\)"):
        factorise(torch.ones(4, 6), 5)
    with pytest.raises(PlanError, match="the weight has 6 columns, its Gram matrix 5"):
        factorise(torch.ones(4, 6), 2, gram_of(inputs(5, 0)))


# -- in space ----------------------------------------------------------------------------------------------------------


def in_space(factors: recover.Factors, shape: torch.Size) -> Tensor:
    o, i, y, x = shape
    first, second = factors.first.reshape(-1, i, y), factors.second.reshape(o, -1, x)
    return torch.einsum("orx,riy->oiyx", second, first).flatten(1)


space = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(2, 3), st.integers(2, 3))


@settings(max_examples=40)
@given(space, st.integers(0, 99), st.booleans(), st.data())
def test_turns_never_lose_to_the_plain_decomposition(
    shape: tuple[int, int, int, int], seed: int, intercept: bool, data: Any
) -> None:
    o, i, y, x = shape
    rank = data.draw(st.integers(1, min(i * y, o * x)))
    weight = matrix(o, i * y * x, seed).reshape(shape)
    gram = gram_of(inputs(i * y * x, seed, data.draw(st.integers(1, i * y * x))))
    moment = damped(gram, intercept)

    def error(factors: recover.Factors) -> float:
        rest = weight.flatten(1) - in_space(factors, weight.shape)
        return float(((rest @ moment) * rest).sum() / ((weight.flatten(1) @ moment) * weight.flatten(1)).sum())

    plain, once, turned = (
        factorise_space(weight, rank, g, intercept=intercept, turns=t) for g, t in ((None, 0), (gram, 0), (gram, 6))
    )
    slack = 1e-5
    assert error(turned) <= error(once) + slack
    assert error(once) <= error(plain) + slack
    assert error(turned) == pytest.approx(turned.error, abs=slack)
    if rank == min(i * y, o * x):
        torch.testing.assert_close(in_space(plain, weight.shape), weight.flatten(1), rtol=1e-9, atol=1e-9)
        assert turned.error < slack
    values = torch.linalg.svdvals(weight.permute(0, 3, 1, 2).reshape(o * x, i * y)).square()
    assert plain.error == pytest.approx(float(values[rank:].sum() / values.sum()), abs=1e-12)


# -- a program ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_constant_goes_into_the_bias_or_the_running_mean(
    net: Callable[..., nn.Sequential], hook_program: Any, images: list[Tensor], bias: bool, spatial: bool
) -> None:
    model = net(bias=bias)
    program = hook_program(model, {"0": "1", "3": "4"})
    grams = recover.collect_grams(program, program.contractions, images)
    x = torch.cat(images)
    with torch.no_grad():
        entering = model[:3](x)
        before = model[3:5](entering)
    name = "3.bias" if bias else "4.running_mean"
    held = {n: t.clone() for n, t in model.state_dict().items()}
    found = recover.factorise_program(program, {"3.weight": 5}, grams, spatial=["3.weight"] if spatial else [])
    after = model.state_dict()
    assert [n for n in held if not torch.equal(held[n], after[n])] == [name]
    made, weight = found["3.weight"], model[3].weight

    thin = in_space(made, weight.shape) if spatial else made.second @ made.first
    with torch.no_grad():
        replaced = F.conv2d(entering, thin.reshape(weight.shape), model[3].bias, padding=1)
        gone = (model[4](replaced) - before).mean((0, 2, 3))
    torch.testing.assert_close(gone, torch.zeros(len(weight)), rtol=0, atol=2e-3)


def test_errors_by_rank_fall(net: Callable[..., nn.Sequential], hook_program: Any, images: list[Tensor]) -> None:
    program = hook_program(net(), {"0": "1", "3": "4"})
    grams = recover.collect_grams(program, program.contractions, images)
    for contraction in program.contractions[:2]:
        for spatial in (False, True):
            errors = recover.program_errors(program, contraction, grams[contraction.node], [1, 3, 6], spatial)
            assert errors == sorted(errors, reverse=True)
            assert 0 <= errors[-1] < errors[0] <= 1
