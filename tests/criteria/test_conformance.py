"""Every criterion passes the suite that plug-ins inherit."""

from __future__ import annotations

import math

import pytest
import torch

from paretoprune.core.protocols import Criterion, View
from paretoprune.criteria import CRITERIA
from paretoprune.criteria.batchnorm import BatchNormScale
from paretoprune.criteria.entropy import BINS, ActivationEntropy
from paretoprune.criteria.fisher import Fisher
from paretoprune.criteria.fpgm import GeometricMedian
from paretoprune.criteria.hrank import MapRank
from paretoprune.criteria.lamp import Lamp
from paretoprune.criteria.magnitude import Magnitude
from paretoprune.criteria.movement import Movement
from paretoprune.criteria.obd import BrainDamage
from paretoprune.criteria.obs import DAMPING, BrainSurgeon
from paretoprune.criteria.random import Random
from paretoprune.criteria.taylor import Taylor, TaylorGate
from paretoprune.criteria.wanda import Wanda
from paretoprune.testing.criterion import CriterionCase

GROWING = {"magnitude", "l1", "l2", "lamp", "taylor", "obd", "wanda"}
SIGNED_OR_RELATIVE = {"random", "fpgm", "movement"}


@pytest.fixture(params=[*CRITERIA, "l0.5", "linf"])
def named(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestAll(CriterionCase):
    @pytest.fixture(autouse=True)
    def _take(self, named: str) -> None:
        self.named = named
        self.zero_is_lowest = named not in SIGNED_OR_RELATIVE
        self.grows_with_weight = named in GROWING or named in ("l0.5", "linf")
        self.follows_positions = named != "random"

    def criterion(self) -> Criterion:
        extra = {"l0.5": Magnitude(0.5), "linf": Magnitude(math.inf)}
        return extra[self.named] if self.named in extra else CRITERIA[self.named]


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
        FaultySuite().test_positions_where_all_is_zero_go_first()


# -- values, worked out by hand ---------------------------------------------------------------------------------------


def view(weight: list[list[float]], **parts: object) -> View:
    made = {k: torch.tensor(v) if isinstance(v, list) else v for k, v in parts.items()}
    return View(torch.tensor(weight), **made)  # type: ignore[arg-type]


def test_magnitude_values() -> None:
    given = view([[3.0, -4.0], [0.0, 0.0]])
    assert Magnitude(1).score(given).tolist() == [7.0, 0.0]
    assert Magnitude(2).score(given).tolist() == [5.0, 0.0]
    assert Magnitude(math.inf).score(given).tolist() == [4.0, 0.0]
    torch.testing.assert_close(Magnitude(0.5).score(given)[0], torch.tensor((3**0.5 + 2) ** 2))
    assert [Magnitude(p).name for p in (1, 2, 0.5, math.inf)] == ["l1", "l2", "l0.5", "linf"]


def test_fpgm_is_least_at_the_geometric_median() -> None:
    scores = GeometricMedian().score(view([[0.0, 0.0], [3.0, 4.0], [-3.0, -4.0]]))
    assert scores.tolist() == [10.0, 15.0, 15.0]


def test_lamp_per_weight_is_the_papers() -> None:
    weight = torch.tensor([[1.0, -2.0], [3.0, 2.0]])
    found = Lamp().score(View(weight.reshape(-1, 1))).reshape(2, 2)
    # Ascending squares 1, 4, 4, 9: each over the sum of those that are at least as large.
    torch.testing.assert_close(found, torch.tensor([[1 / 18, 4 / 17], [1.0, 4 / 17]]))
    assert Lamp().score(View(weight)).tolist() == [pytest.approx(5 / 18), 1.0]


def test_weights_and_gradients() -> None:
    given = view([[1.0, 2.0], [3.0, -1.0]], grad=[[2.0, -1.0], [1.0, 1.0]], inputs=[[1.0, 0.5], [2.0, 3.0]])
    assert Taylor().score(given).tolist() == [0.0, 4.0]
    assert BrainDamage().score(given).tolist() == [4.0, 5.0]
    assert Movement().score(given).tolist() == [0.0, -2.0]
    assert Wanda().score(given).tolist() == [2.0, 9.0]
    assert BatchNormScale().score(view([[0.0]], scale=[[-2.0, 1.0]])).tolist() == [3.0]


def test_gates() -> None:
    given = view([[0.0], [0.0]], gates=[[1.0, -1.0], [2.0, 0.0]])
    assert TaylorGate().score(given).tolist() == [1.0, 1.0]
    assert Fisher().score(given).tolist() == [0.5, 1.0]


def test_obs_knows_what_the_others_can_make_up_for() -> None:
    """Twins cost next to nothing alone; without company the score is Fisher's."""
    one, other = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    given = View(torch.zeros(3, 1), gates=torch.stack([one, one, other]))
    twin, again, alone = BrainSurgeon().score(given).tolist()
    assert twin == pytest.approx(again)
    fisher = Fisher().score(given)
    assert twin < 3 * DAMPING * float(fisher[0])
    assert alone == pytest.approx(float(fisher[2]), rel=0.05)


def test_hrank_counts_independent_rows() -> None:
    maps = torch.stack([torch.eye(3), torch.ones(3, 3), torch.zeros(3, 3)])[:, None]
    assert MapRank().score(View(torch.zeros(3, 1), activations=maps)).tolist() == [3.0, 1.0, 0.0]


def test_entropy_of_two_equal_bins_and_of_a_constant() -> None:
    means = torch.stack([torch.tensor([0.0, 1.0] * 8), torch.ones(16), torch.arange(16.0)])[:, :, None, None]
    found = ActivationEntropy().score(View(torch.zeros(3, 1), activations=means))
    torch.testing.assert_close(found, torch.tensor([math.log(2), 0.0, math.log(BINS)]))


def test_random_depends_on_the_axis_and_the_seed_alone() -> None:
    def draw(axis: str, seed: int = 0, weight: float = 1.0) -> list[float]:
        found: list[float] = Random(seed).score(View(torch.full((5, 2), weight), axis=axis)).tolist()
        return found

    assert draw("a") == draw("a", weight=2.0)
    assert draw("a") != draw("b")
    assert draw("a") != draw("a", seed=1)
