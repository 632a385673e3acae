"""Calibration error against a direct formula; loss, recovery ratio and generalisation gap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from paretoprune.core.measurement import Measurement
from paretoprune.core.protocols import Task
from paretoprune.tasks.calibration import Calibration, calibration_figure, expected_calibration_error
from paretoprune.tasks.classification import CLASSIFICATION
from paretoprune.tasks.losses import Losses, generalisation_gap, recovery_ratio


def direct(confidence: np.ndarray, hit: np.ndarray, bins: int) -> float:
    """Guo et al., eq. 3, bin by bin as it is printed."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if m == 1:
            inside |= confidence == 0
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return total


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.sampled_from([1, 8, 16]))
def test_the_error_is_that_of_the_formula(pairs: list[tuple[float, bool]], bins: int) -> None:
    """Powers of two: m / bins is exact, so that both sides put a confidence on an edge into one bin."""
    confidence, hit = np.array([p for p, _ in pairs]), np.array([float(h) for _, h in pairs])
    assert expected_calibration_error(confidence, hit, bins) == pytest.approx(direct(confidence, hit, bins), abs=1e-12)


def test_one_who_is_always_sure_and_right_nine_times_in_ten_is_off_by_a_tenth() -> None:
    hit = np.array([1.0] * 90 + [0.0] * 10)
    figure = calibration_figure(np.ones(100), hit)
    assert figure.value == pytest.approx(0.1)
    assert figure.low < 0.1 < figure.high
    assert figure.note == "15 bins"


def test_what_softmax_says_is_judged() -> None:
    made = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(80, 5, generator=made), torch.randint(0, 5, (80,), generator=made)
    watch = Calibration()
    for part in (slice(0, 30), slice(30, 80)):
        watch(None, logits[part], labels[part], None)
    confidence, taken = logits.double().softmax(1).max(1)
    expected = direct(confidence.numpy(), (taken == labels).double().numpy(), 15)
    assert watch.figures()["calibration_error"].value == pytest.approx(expected)


def test_logits_that_are_not_finite_have_no_calibration() -> None:
    watch = Calibration()
    watch(None, torch.tensor([[float("inf"), 0.0]]), torch.tensor([0]), None)
    assert watch.figures() == {}
    assert watch.why == "some logits are not finite"


def test_the_loss_is_the_mean_over_samples_whatever_the_batches() -> None:
    made = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 4, generator=made), torch.randint(0, 4, (50,), generator=made)
    own = Task("own", lambda o, y: F.cross_entropy(o, y), CLASSIFICATION.correct)
    for task in (CLASSIFICATION, own):
        watch = Losses(task)
        for part in (slice(0, 7), slice(7, 50)):
            watch(None, logits[part], labels[part], torch.zeros(len(labels[part])))
        found = watch.figures()["loss"]
        assert found.value == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
        assert (found.low < found.value < found.high) is (task is CLASSIFICATION)
        assert (watch.per_sample is None) is (task is own)


def test_a_loss_that_is_not_finite_is_absent() -> None:
    watch = Losses(CLASSIFICATION)
    watch(None, torch.tensor([[0.0, -float("inf")]]), torch.tensor([1]), torch.zeros(1))
    assert watch.figures() == {}
    assert watch.why == "the loss is not finite"


def test_the_recovery_ratio_of_a_network_with_itself_is_one_without_doubt() -> None:
    losses = np.random.default_rng(0).exponential(size=100)
    figure = Measurement(float(losses.mean()), 0.7, 1.3, 100, "loss")
    same = recovery_ratio(figure, figure, (losses, losses))
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    unpaired = recovery_ratio(figure, figure, None)
    assert unpaired.value == 1.0
    assert unpaired.low < 1 < unpaired.high


def test_the_paired_interval_is_as_wide_as_the_spread_of_fresh_samples() -> None:
    def case(seed: int) -> Measurement:
        made = np.random.default_rng(seed)
        one = made.exponential(size=200)
        other = one * 1.25 + made.exponential(0.2, size=200)
        figures = [Measurement(float(x.mean()), 0, 9, 200, "loss") for x in (one, other)]
        return recovery_ratio(figures[0], figures[1], (one, other))

    values = [case(seed).value for seed in range(200)]
    figure = case(0)
    assert (figure.high - figure.low) == pytest.approx(4 * float(np.std(values)), rel=0.4)


def test_the_gap_is_taken_on_equally_many_samples() -> None:
    train, held_out = np.array([1.0] * 80 + [0.0] * 20), np.array([1.0] * 40 + [0.0] * 10 + [0.0] * 400)
    gap = generalisation_gap(train, held_out[:50])
    assert gap.runs == 50
    assert gap.value == pytest.approx(1.0 - 0.8)
    assert gap.low < gap.value < gap.high
    assert generalisation_gap(train, train).value == 0
