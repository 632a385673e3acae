"""Fake quantizers: on the grid forward, gradients backward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paretoprune.core.grid import Grid
from paretoprune.quantize import BinaryWeight, FakeActivation, FakeBias, FakeWeight


def grid(scale: float = 0.1, zero: int = 128, low: int = 0, high: int = 255) -> Grid:
    return Grid("g", np.float32(scale), zero, low, high)  # type: ignore[arg-type]


def channels(high: int = 127, axis: int | None = 0) -> Grid:
    return Grid("w", np.ones(1, np.float32), 0, -high, high, axis)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 10), st.integers(0, 255), st.integers(0, 1000))
def test_activations_are_on_the_grid_and_rounding_twice_is_rounding_once(scale: float, zero: int, seed: int) -> None:
    fake = FakeActivation(grid(scale, zero))
    x = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * scale * 200
    once = fake(x).detach()
    whole = once / scale + zero
    assert torch.allclose(whole, whole.round(), atol=1e-2)
    assert float(whole.min()) >= -0.01
    assert float(whole.max()) <= 255.01
    torch.testing.assert_close(fake(once).detach(), once)


def test_gradients_pass_inside_the_grid_and_stop_outside() -> None:
    fake = FakeActivation(grid(0.1, 128))
    x = torch.tensor([0.0, 1.23, 100.0, -100.0], requires_grad=True)
    fake(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 0, 0]
    assert fake.scale.grad is not None  # what is cut off pulls the scale: 127 up, -128 down
    assert float(fake.scale.grad) < 0


def test_a_scale_that_is_too_small_grows() -> None:
    fake = FakeActivation(grid(0.01, 0))
    x = torch.rand(8, 100) * 5
    optimizer = torch.optim.SGD(fake.parameters(), lr=0.2)
    before = float((fake(x) - x).detach().square().mean())
    for _ in range(60):
        optimizer.zero_grad()
        (fake(x) - x).square().mean().backward()
        optimizer.step()
    assert float((fake(x) - x).detach().square().mean()) < 0.05 * before


@pytest.mark.parametrize("axis", [0, 1, None])
def test_weights_lie_on_a_grid_of_their_channel(axis: int | None) -> None:
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    fake = FakeWeight(channels(63, axis))
    whole, scale = fake.whole(weight)
    assert torch.equal(whole, whole.round())
    assert float(whole.abs().max()) == 63
    assert scale.shape == (() if axis is None else (weight.shape[axis],))
    assert float((fake(weight) - weight).abs().max()) <= 0.5 * float(scale.max()) + 1e-6


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    out = FakeWeight(channels())(weight)
    out.sum().backward()
    assert out.tolist() == [[0] * 3] * 2
    assert weight.grad is not None and weight.grad.tolist() == [[1] * 3] * 2  # noqa: PT018


def test_binary_weights_are_signs_times_the_mean() -> None:
    weight = torch.tensor([[0.5, -1.5], [0.0, 2.0]], requires_grad=True)
    fake = BinaryWeight(channels(64))
    torch.testing.assert_close(fake(weight), torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
    assert fake.whole(weight)[0].tolist() == [[64, -64], [64, 64]]
    far = torch.tensor([[1.0, 1.0, 1.0, 1.0, 100.0]], requires_grad=True)
    fake(far).sum().backward()
    assert far.grad is not None
    assert far.grad.tolist() == [[1, 1, 1, 1, 0]]


def test_a_bias_is_a_whole_number_of_products() -> None:
    entering, weight = FakeActivation(grid(0.1, 0)), FakeWeight(channels(1))
    w, b = torch.tensor([[2.0], [4.0]]), torch.tensor([0.33, 0.33])
    torch.testing.assert_close(FakeBias(entering, weight)(b, w), torch.tensor([0.4, 0.4]))
    weight.on = False
    assert torch.equal(FakeBias(entering, weight)(b, w), b)
