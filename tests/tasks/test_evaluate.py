from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paretoprune.core.errors import DataError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.protocols import Task
from paretoprune.tasks import evaluate, wilson
from paretoprune.tasks.classification import CLASSIFICATION


def batches(count: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    made = torch.Generator().manual_seed(0)
    return [(torch.randn(7, 4, generator=made), torch.randint(0, 3, (7,), generator=made)) for _ in range(count)]


@pytest.fixture
def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def test_share_of_all_samples_with_torch_and_with_a_runner_s_arrays(model: nn.Linear) -> None:
    data = batches()
    x, y = torch.cat([b[0] for b in data]), torch.cat([b[1] for b in data])
    expected = float((model(x).argmax(1) == y).float().mean())

    def runner(inputs: Example) -> tuple[np.ndarray, ...]:
        return (model(*inputs.args).numpy(),)

    for predict in (lambda e: model(*e.args), runner):
        found = evaluate(predict, data, CLASSIFICATION)
        assert found.value == pytest.approx(expected)
        assert (found.runs, found.unit, found.status) == (35, "share", "measured")
        assert found.low < found.value < found.high
        assert (found.low, found.high) == wilson(found.value, 35)


def test_uneven_batches_weigh_by_samples() -> None:
    logits = torch.tensor([[1.0, 0.0]])
    data = [(logits.expand(9, 2), torch.zeros(9, dtype=torch.long)), (logits, torch.ones(1, dtype=torch.long))]
    assert evaluate(lambda e: e.args[0], data, CLASSIFICATION).value == pytest.approx(0.9)


def test_cap_reads_no_more(model: nn.Linear) -> None:
    def endless():  # type: ignore[no-untyped-def]
        while True:
            yield from batches(1)

    assert evaluate(lambda e: model(*e.args), endless(), CLASSIFICATION, cap=3).runs == 21


def test_no_gradient_is_kept(model: nn.Linear) -> None:
    def predict(inputs: Example) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return model(*inputs.args)

    evaluate(predict, batches(1), CLASSIFICATION)


def test_refusals(model: nn.Linear) -> None:
    with pytest.raises(DataError, match="empty"):
        evaluate(lambda e: model(*e.args), [], CLASSIFICATION)
    with pytest.raises(DataError, match="batch 0 has no labels"):
        evaluate(lambda e: model(*e.args), [torch.randn(2, 4)], CLASSIFICATION)
    wild = Task("wild", CLASSIFICATION.loss, lambda out, y: 2 * CLASSIFICATION.correct(out, y) - 3)
    with pytest.raises(UsageError, match=r"'wild'.*outside 0 to 1"):
        evaluate(lambda e: model(*e.args), batches(1), wild)
    scalar = Task("scalar", CLASSIFICATION.loss, lambda out, y: CLASSIFICATION.correct(out, y).mean())
    with pytest.raises(UsageError, match=r"shape \(samples,\)"):
        evaluate(lambda e: model(*e.args), batches(1), scalar)


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_holds_the_share_and_narrows(samples: int, share: float) -> None:
    low, high = wilson(share, samples)
    assert 0 <= low <= share <= high <= 1
    assert low < high
    wider = wilson(share, samples)[1] - wilson(share, samples)[0]
    narrower = wilson(share, samples * 4)[1] - wilson(share, samples * 4)[0]
    assert narrower < wider


def test_wilson_against_the_published_value() -> None:
    low, high = wilson(0.0, 10)
    assert (low, high) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(0.5, 100) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
