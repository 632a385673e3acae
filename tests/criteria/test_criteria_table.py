from __future__ import annotations

import pytest

from paretoprune.core.errors import UsageError
from paretoprune.criteria import CRITERIA, criterion_of
from paretoprune.criteria.magnitude import Magnitude


def test_names() -> None:
    assert set(CRITERIA) == {"magnitude", "l1", "l2", "taylor"}
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
        ("math:pi", "has no name, members"),
    ],
)
def test_what_cannot_be_used_is_named(given: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        criterion_of(given)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(UsageError, match="l1, l2, magnitude, taylor"):
        criterion_of("hessian")
