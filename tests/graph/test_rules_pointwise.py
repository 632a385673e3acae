"""What the table says of zeros, tried on the operators themselves; pointwise operators in small networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from paretoprune.graph.rules import RULES, pointwise

TOKENS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
ZERO, ONE = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
OTHERS = [torch.tensor([v] * 3, dtype=torch.float64) for v in (-2.5, -0.5, 0.5, 3.0)]


def operators(dead: Any) -> list[str]:
    return sorted(n for n, r in RULES.items() if r.infer is pointwise.pointwise and r.dead is dead)


def run(name: str, *given: torch.Tensor) -> torch.Tensor:
    """The operator on tensors, numbers where it takes numbers; integers where it takes no fractions."""
    _, packet, overload = name.split(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload)
    values = list(given)
    args: list[Any] = []
    for argument in operator._schema.arguments:
        if "Tensor" in str(argument.type) and values:
            args.append(values.pop(0))
        elif str(argument.type) == "number" and not argument.has_default_value() and values:
            args.append(float(values.pop(0)[0]))
    if "bitwise" in name or "__" in name:
        args = [a.long() if isinstance(a, torch.Tensor) else int(a) for a in args]
    if packet in ("_conj", "imag"):
        args = [a.to(torch.complex128) for a in args]
    named = {"decimals": 1, "rounding_mode": "floor"}
    kwargs = {a.name: named[a.name] for a in operator._schema.arguments if a.name in named}
    result: torch.Tensor = operator(*args, **kwargs)
    return result


@pytest.mark.parametrize("name", operators(pointwise.zero_stays))
def test_zero_stays_zero(name: str) -> None:
    assert not run(name, ZERO).any()


@pytest.mark.parametrize("name", operators(pointwise.sum_dead))
def test_two_zeros_make_a_zero(name: str) -> None:
    assert not run(name, ZERO, ZERO).any()


@pytest.mark.parametrize("name", operators(pointwise.product_dead))
def test_one_zero_is_enough(name: str) -> None:
    for other in OTHERS:
        assert not run(name, ZERO, other).any()
        assert not run(name, other, ZERO).any()


@pytest.mark.parametrize("name", [*operators(pointwise.quotient_dead), *operators(pointwise.first_dead)])
def test_a_zero_in_front_is_enough(name: str) -> None:
    for other in OTHERS:
        assert not run(name, ZERO, other).any()


@pytest.mark.parametrize("name", operators(pointwise.either_dead))
def test_one_of_two_zeros_is_zero(name: str) -> None:
    given = [ZERO, ZERO, ONE] if "lerp" in name else [ZERO > 1, ZERO, ZERO]
    assert not run(name, *given).any()


def net(function: Any, **more: Any) -> Any:
    """`function` may see what a removed unit holds: its result is summed over the units."""

    def forward(m: Any, x: torch.Tensor) -> Any:
        y = function(m, m.a(x))
        return m.b(y) + y.sum(-1, keepdim=True)

    return forward, {"a": nn.Linear(6, 5), "b": nn.Linear(5, 4), **more}


STAYS: dict[str, Any] = {
    "threshold": net(lambda m, y: nn.functional.threshold(y, -0.1, 0.7) + nn.functional.threshold(y, 0.1, 0.0)),
    "rrelu": net(lambda m, y: nn.functional.rrelu(y)),
    "added product": net(lambda m, y: torch.addcmul(y, y, y.sigmoid(), value=0.5)),
    "added quotient": net(lambda m, y: torch.addcdiv(y, y, y.exp())),
    "between": net(lambda m, y: torch.lerp(y, y.relu(), 0.3) + torch.lerp(y, y.relu(), y.sigmoid())),
    "one of two": net(lambda m, y: torch.where(y > 0.2, y, 0.0) + torch.where(y.exp() > 1, y.tanh(), y.square())),
    "remainders": net(lambda m, y: y.fmod(0.7) + y.remainder(0.3) + y // 0.5 + torch.div(y, 3, rounding_mode="trunc")),
    "larger and smaller": net(lambda m, y: torch.maximum(y, y.square()) + torch.fmin(y, y.relu()) + torch.hypot(y, y)),
    "learned slopes": net(lambda m, y: nn.functional.prelu(y.mT, m.p).mT, p=nn.Parameter(torch.ones(5))),
    "signs": net(lambda m, y: y.sign() + y.sgn() + y.copysign(-y) + y.nan_to_num() + y.ceil() + y.frac()),
    "bounds": net(lambda m, y: y.clip(-1, 1) + y.clamp(min=-0.5) + y.float_power(2).to(y.dtype)),
    "masks": net(lambda m, y: y * ((y > 0) & (y < 1)) + y * ((y > 0) | (y < -1)) + y * ~(y > 0)),
    "casts": net(lambda m, y: y + y.to(torch.float64).type_as(y) + y.cpu().contiguous()),
}


@pytest.mark.parametrize("name", STAYS)
def test_a_removed_unit_stays_zero(name: str, tools: Any) -> None:
    forward, parts = STAYS[name]
    assert tools.prunable(tools.prove(tools.Net(forward, **parts).double(), TOKENS)) == {"a": 5}


LEAVES: dict[str, Any] = {
    "threshold": net(lambda m, y: nn.functional.threshold(y, 0.1, 0.7)),
    "added product": net(lambda m, y: torch.addcmul(y, y.exp(), y.sigmoid())),
    "added quotient": net(lambda m, y: torch.addcdiv(y, y.exp(), y.exp())),
    "between": net(lambda m, y: torch.lerp(y, y.exp(), 0.3)),
    "one of two": net(lambda m, y: torch.where(y > 0.2, y, 0.5)),
    "logarithms": net(lambda m, y: torch.logaddexp(y, y)),
    "larger of two": net(lambda m, y: torch.maximum(y, y.exp())),
    "from one": net(lambda m, y: 1 - y),
    "angle": net(lambda m, y: torch.atan2(y, -y.square() - 1)),
    "power": net(lambda m, y: y.abs() ** y),
    "bounds": net(lambda m, y: y.clamp(y.exp(), y.exp() + 1)),
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_removed_unit_would_be_seen(name: str, tools: Any) -> None:
    forward, parts = LEAVES[name]
    graph = tools.prove(tools.Net(forward, **parts).double(), TOKENS)
    assert "it is summed up and what is removed is not zero there" in tools.why(graph, "a.weight", 0)
