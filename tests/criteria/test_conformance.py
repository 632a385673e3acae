"""Every criterion passes the suite that plug-ins inherit."""

from __future__ import annotations

import pytest
import torch

from paretoprune.core.protocols import Criterion, View
from paretoprune.criteria.magnitude import Magnitude
from paretoprune.criteria.taylor import Taylor
from paretoprune.testing.criterion import CriterionCase


class TestL1(CriterionCase):
    def criterion(self) -> Criterion:
        return Magnitude(1)


class TestL2(CriterionCase):
    def criterion(self) -> Criterion:
        return Magnitude(2)


class TestTaylor(CriterionCase):
    def criterion(self) -> Criterion:
        return Taylor()


class Faulty(Magnitude):
    """Scores depend on where a position stands."""

    def score(self, view: View) -> torch.Tensor:
        return super().score(view) + torch.arange(len(view.weight))


class FaultySuite(CriterionCase):
    def criterion(self) -> Criterion:
        return Faulty()


def test_suite_finds_a_criterion_that_looks_at_the_place() -> None:
    with pytest.raises(AssertionError):
        FaultySuite().test_permuting_positions_permutes_scores()
    with pytest.raises(AssertionError):
        FaultySuite().test_positions_without_weight_score_lowest()


def test_magnitude_values() -> None:
    view = View(torch.tensor([[3.0, -4.0], [0.0, 0.0]]))
    assert Magnitude(1).score(view).tolist() == [7.0, 0.0]
    assert Magnitude(2).score(view).tolist() == [5.0, 0.0]
