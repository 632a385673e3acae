from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretoprune.targets.correction import LEAST_SHARE, Correction, fitted

SHARES = st.lists(st.tuples(st.floats(0.1, 0.9), st.floats(0.1, 0.9)), min_size=3, max_size=9, unique=True)


@given(st.floats(0.05, 0.5), st.floats(0.05, 0.5), SHARES)
def test_what_holds_exactly_is_found(layers, elements, shares):
    """Also where the table sees half of what is saved."""
    x, e = zip(*shares, strict=True)
    real = [1 - layers * (1 - a) - elements * (1 - b) for a, b in shares]
    found = fitted(x, e, real)
    for (a, b), share in zip(shares, real, strict=True):
        assert found.share(a, b) == pytest.approx(share, rel=1e-5)
    assert found.share(1.0, 1.0) == 1.0
    assert found.networks == len(shares)


def test_its_error_is_that_of_networks_it_was_not_fitted_to():
    x, e = [0.2, 0.4, 0.6, 0.8, 0.9], [0.5, 0.9, 0.7, 0.9, 0.95]
    exact = [0.7 * a + 0.3 * b for a, b in zip(x, e, strict=True)]
    assert fitted(x, e, exact).error == pytest.approx(0, abs=1e-9)
    noisy = [v * f for v, f in zip(exact, [1.05, 0.95, 1.05, 0.95, 1.0], strict=True)]
    within = sorted(abs(fitted(x, e, noisy).share(a, b) / v - 1) for a, b, v in zip(x, e, noisy, strict=True))[2]
    assert 0 < within < fitted(x, e, noisy).error < 0.3


def test_nothing_is_cheaper_for_being_there():
    found = fitted([0.2, 0.4, 0.6], [0.9, 0.8, 0.7], [0.95, 0.9, 0.8])
    assert min(found.layers, found.elements) == 0.0
    assert fitted([0.2, 0.4, 0.6], [0.5, 0.6, 0.7], [1.2, 1.3, 1.1]) == Correction(
        1.0, 0.0, pytest.approx(0.7, abs=0.2), 3
    )


def test_no_network_is_free():
    assert fitted([0.5, 0.6, 0.7], [0.9, 0.9, 0.9], [0.1, 0.3, 0.5]).share(0.1, 0.9) == LEAST_SHARE


def test_too_few_networks_correct_nothing():
    assert fitted([0.5, 0.8], [0.5, 0.9], [0.4, 0.9]) == Correction(networks=2)


def test_one_factor_of_an_earlier_version_weighs_the_two_shares():
    old = Correction.from_json({"layers": 0.7, "error": 0.02, "networks": 4})
    assert old.share(0.2, 0.5) == pytest.approx(0.7 * 0.2 + 0.3 * 0.5)


def test_it_survives_json():
    found = fitted([0.2, 0.4, 0.6], [0.3, 0.4, 0.7], [0.3, 0.5, 0.6])
    assert Correction.from_json(json.loads(json.dumps(found.to_json()))) == found
