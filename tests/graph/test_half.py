"""Half-precision products in single precision: the same numbers, rounded once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from paretoprune.graph import half
from paretoprune.graph.shared import unwritten

MM, ADDMM = torch.ops.aten.mm.default, torch.ops.aten.addmm.default


def matrices(dtype: torch.dtype, columns: int = 1030) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 1024, generator=made), torch.randn(columns, 1024, generator=made).T
    return a.to(dtype), b.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [1024, 1030])
def test_the_product_is_rounded_once(dtype: torch.dtype, columns: int) -> None:
    a, b = matrices(dtype, columns)
    exact = a.double() @ b.double()
    torch.testing.assert_close(half.called(MM, (a, b), {}), exact.to(dtype), rtol=0.01, atol=1e-3)
    bias = torch.arange(columns, dtype=torch.float32).to(dtype)
    torch.testing.assert_close(half.called(ADDMM, (bias, a, b), {}), (exact + bias).to(dtype), rtol=0.01, atol=1e-2)


def test_everything_else_is_called_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def func(*args: object, **kwargs: object) -> None:
        seen.append((args, kwargs))

    monkeypatch.setattr(half, "_PRODUCTS", {func: 0})
    a, b = matrices(torch.bfloat16)
    small = b[:, :64]
    given = [((a.float(), b.float()), {}), ((a, small), {}), ((a, b.to("meta")), {}), ((a, b), {"out": a})]
    for args, kwargs in given:
        half.called(func, args, kwargs)
    assert len(seen) == len(given)


def test_a_layer_keeps_its_type_and_shape() -> None:
    layer = nn.Linear(1024, 1100, dtype=torch.bfloat16)
    x = torch.randn(2, 5, 1024, dtype=torch.bfloat16)
    with torch.no_grad():
        plain = layer(x)
        with unwritten(layer.parameters()):
            ours = layer(x)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.02)
