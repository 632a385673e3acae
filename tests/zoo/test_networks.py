"""Half of every axis of every network, double precision, another batch size, against the independent reference."""

from __future__ import annotations

import importlib.util
import re
import warnings

import pytest

from paretoprune.core.errors import PruneError
from zoo import ours
from zoo.networks import NETWORKS

QUICK = (
    "own/hard_coded_view",
    "own/cifar_resnet",
    "own/dlrm",
    "own/einsum_attention",
    "own/multihead_attention",
    "own/mixture_of_experts",
    "own/selective_scan",
    "transformers/llama",
)
"""The cheapest ones of different kinds of operators."""

REFUSED = {
    ("own/channel_shuffle_uneven", "inner"): "its layout cannot be matched",
    ("own/channel_shuffle_uneven", "all"): "its layout cannot be matched",
}
"""(network, axes) that are refused, and the words that say why."""


def pruned(name: str, axes: str) -> dict[str, object]:
    package = NETWORKS[name].needs
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: `make zoo` installs it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, example, result = ours.halved(name, axes)
        return {**ours.judged(name, result, example), "cut": len(result.plan.kept)}


def check(name: str, axes: str) -> None:
    if why := REFUSED.get((name, axes)):
        with pytest.raises(PruneError, match=re.escape(why)):
            pruned(name, axes)
        return
    row = pruned(name, axes)
    assert row["cut"], "nothing was pruned"
    assert row["status"] == "exact", row


@pytest.mark.parametrize("name", QUICK)
def test_a_few_networks(name: str) -> None:
    check(name, "all")


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["inner", "all"])
@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str, axes: str) -> None:
    check(name, axes)
