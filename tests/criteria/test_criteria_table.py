from __future__ import annotations

from typing import Any

import pytest
import torch

from paretoprune.core.errors import UsageError
from paretoprune.core.protocols import View
from paretoprune.criteria import CRITERIA, criterion_of
from paretoprune.criteria.magnitude import Magnitude


def test_names() -> None:
    weights = {"magnitude", "l1", "l2", "random", "bn-scale", "fpgm", "lamp"}
    gradients = {"gradient", "taylor", "taylor-gate", "movement", "fisher", "obd", "obs"}
    assert set(CRITERIA) == weights | gradients | {"hrank", "entropy", "mean-activation", "wanda", "reconstruction"}
    assert all(CRITERIA[n].name == n for n in CRITERIA if n != "magnitude")
    assert criterion_of("magnitude").name == "l2"
    assert criterion_of("l1").name == "l1"


def test_object_and_reference() -> None:
    mine = Magnitude(1)
    assert criterion_of(mine) is mine
    assert criterion_of("paretoprune.criteria.taylor:Taylor").name == "taylor"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("magnitud", "did you mean 'magnitude'"),
        ("no_such_pkg.mod:Class", "cannot import 'no_such_pkg.mod'"),
        ("paretoprune.criteria.taylor:Tailor", "no attribute 'Tailor'"),
        (":x", "cannot import"),
        ("math:pi", "has no name, members, needs, remove, comparable, score"),
    ],
)
def test_what_cannot_be_used_is_named(given: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        criterion_of(given)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(UsageError, match="l1, l2, lamp, magnitude, mean-activation"):
        criterion_of("hessian")


@pytest.mark.parametrize("order", [0, -1, float("nan"), "2"])
def test_an_order_that_is_no_norm_is_refused(order: Any) -> None:
    with pytest.raises(UsageError, match="give a number above 0"):
        Magnitude(order)


class Odd(Magnitude):
    needs = frozenset({"gradient"})  # type: ignore[assignment]


def test_a_plug_in_that_declares_wrongly_is_refused() -> None:
    with pytest.raises(UsageError, match="needs 'gradient'; there are activations, elimination, gates"):
        criterion_of(Odd())
    wrong = Magnitude()
    wrong.remove = "largest"  # type: ignore[assignment]
    with pytest.raises(UsageError, match="remove='largest': give 'low' or 'high'"):
        criterion_of(wrong)


@pytest.mark.parametrize("name", [n for n in CRITERIA if CRITERIA[n].needs])
def test_a_view_without_what_was_asked_for_is_refused(name: str) -> None:
    need = next(iter(CRITERIA[name].needs))
    with pytest.raises(UsageError, match=f"criterion {name!r} needs {need}"):
        CRITERIA[name].score(View(torch.ones(2, 2)))
