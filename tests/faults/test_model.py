"""Faults of the model that have no number of their own: wrong examples, fixed sizes, state, branches of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paretoprune import graph as graphs
from paretoprune.core.errors import CaptureError, DataError, PruneError

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(F.relu(self.a(x)))


class With(Small):
    """Small, with another forward."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.function = forward

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def one_line(error: pytest.ExceptionInfo[PruneError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.fault
@pytest.mark.parametrize(
    ("example", "kind", "words"),
    [
        (torch.randn(2, 5), CaptureError, r"cannot run on the example \(input: \(2, 5\)"),
        (torch.randn(0, 6), DataError, "empty"),
        (torch.tensor(1.0), DataError, "no dimensions"),
        ((), DataError, "holds no tensor"),
    ],
)
def test_44_an_example_of_the_wrong_shape(example: Any, kind: type[PruneError], words: str) -> None:
    with pytest.raises(kind, match=words) as error:
        graphs.trace(Small(), example)
    one_line(error)


@pytest.mark.fault
def test_dynamic_dims_that_do_not_exist() -> None:
    with pytest.raises(DataError, match="dynamic names 'tokens', but the inputs are"):
        graphs.trace(Small(), X, {"tokens": [1]})
    with pytest.raises(DataError, match="dimension 4 of 'input', which has 2"):
        graphs.trace(Small(), X, {"input": [4]})


@pytest.mark.fault
def test_a_fixed_batch_is_refused() -> None:
    model = With(lambda m, x: m.b(m.a(x).view(2, 8)))
    with pytest.raises(CaptureError, match="use x.shape\\[0\\] or -1 instead of a number") as error:
        graphs.trace(model, X)
    one_line(error)


@pytest.mark.fault
def test_state_outside_the_graph_is_refused() -> None:
    """A forward whose second call differs from its first cannot be captured by one call."""

    class Counting(Small):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.b(self.a(x)) * (1 if self.calls < 3 else 5)

    with pytest.raises(CaptureError, match="other values than the network") as error:
        graphs.trace(Counting(), X)
    one_line(error)


@pytest.mark.fault
def test_branches_of_training_are_listed() -> None:
    class Noisy(Small):
        def forward(self, x: torch.Tensor) -> Any:
            y = self.a(x)
            if self.training:
                return self.b(y + torch.randn_like(y)), y
            return self.b(y)

    notes = " ".join(graphs.trace(Noisy(), X).notes)
    assert "draws random numbers in 1 place(s) that are not kept" in notes
    assert "gives 2 output(s)" in notes
    dropped = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3))
    assert graphs.trace(dropped, X).notes == ()
