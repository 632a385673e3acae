"""Every knob: what is accepted, and what every wrong value is told."""

from __future__ import annotations

from typing import Any

import pytest

from paretoprune.core.errors import LimitError, UsageError
from paretoprune.pipeline.settings import Settings, seconds, settings_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90 s", 90.0),
        ("90s", 90.0),
        ("45 sec", 45.0),
        ("20 min", 1200.0),
        ("1.5 h", 5400.0),
        (" 2 h ", 7200.0),
        (".5 min", 30.0),
    ],
)
def test_a_budget_has_a_unit(text: str, expected: float) -> None:
    assert seconds(text) == expected
    assert settings_of(budget=text).budget_s == expected


@pytest.mark.parametrize("text", ["20", "20 minutes of work", "min", "", "20 MIN", "-5 s", "1e3 s", "nan s", "5 d"])
def test_a_budget_that_cannot_be_read_is_told_how(text: str) -> None:
    with pytest.raises(UsageError, match="give a time with its unit, such as '20 min'"):
        seconds(text)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (20, "with its unit"),
        (None, "with its unit"),
        ("0 s", "must be above 0"),
        ("1.2.3 s", r"'1\.2\.3' is no number"),
    ],
)
def test_a_budget_that_is_no_time(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        seconds(given)


def test_the_defaults_are_sound_and_hashable() -> None:
    assert settings_of() == Settings()
    assert hash(Settings()) == hash(Settings())


def test_lists_become_tuples_and_one_text_stands_for_a_list_of_one() -> None:
    given = settings_of(["size <= 1 MB"], ignore="stem", precisions=["fp32"], objectives=["accuracy", "size"])
    assert given.limits == ("size <= 1 MB",)
    assert given.ignore == ("stem",)
    assert given.precisions == ("fp32",)
    assert given.objectives == ("accuracy", "size")
    assert settings_of("size <= 1 MB") == settings_of(["size <= 1 MB"])
    assert str(given.parsed_limits) == "size <= 1 MB"


def test_an_unknown_setting_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown setting 'candidats'; there are activations, .*axes, .*candidates"):
        settings_of(candidats=3)


WHOLE = [0, -1, 1.5, "3", True, float("nan")]


@pytest.mark.parametrize(
    "name", ["candidates", "floor", "threads", "calibration_samples", "evaluations", "max_batches", "align"]
)
@pytest.mark.parametrize("value", WHOLE)
def test_counts_are_whole_and_at_least_one(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name}=.*whole number of at least 1"):
        settings_of(**{name: value})


@pytest.mark.parametrize("name", ["candidates", "floor", "threads", "calibration_samples"])
def test_counts_that_must_be_there(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}=None"):
        settings_of(**{name: None})


@pytest.mark.parametrize("name", ["steps", "seed"])
def test_steps_and_seed_may_be_zero(name: str) -> None:
    assert getattr(settings_of(**{name: 0}), name) == 0
    for value in (-1, 0.5, "0", False):
        with pytest.raises(UsageError, match=f"{name}=.*whole number of at least 0"):
            settings_of(**{name: value})


@pytest.mark.parametrize("name", ["learning_rate", "watts_per_core"])
@pytest.mark.parametrize("value", [0, -0.1, float("nan"), float("inf"), "0.1"])
def test_amounts_are_above_zero(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name}=.*give a number above 0"):
        settings_of(**{name: value})


def test_only_the_watts_may_be_left_to_the_default() -> None:
    assert settings_of(watts_per_core=None).watts_per_core is None
    with pytest.raises(UsageError, match="learning_rate=None"):
        settings_of(learning_rate=None)


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan"), "half", None])
def test_keep_ratio_is_a_share(value: Any) -> None:
    with pytest.raises(UsageError, match="keep_ratio=.*a share from 0 to below 1"):
        settings_of(keep_ratio=value)


@pytest.mark.parametrize("value", ["outer", None, 3, lambda axis: True])
def test_axes_by_name(value: Any) -> None:
    with pytest.raises(UsageError, match="give 'inner' or 'all'"):
        settings_of(axes=value)


@pytest.mark.parametrize("value", [(), ("int8",), ("int8", "fp32"), "int8"])
def test_fp32_comes_first(value: Any) -> None:
    with pytest.raises(UsageError, match="'fp32' comes first"):
        settings_of(precisions=value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (("accuracy", "speedd"), "unknown metric 'speedd'"),
        ((), "give different metrics, at least one"),
        (("latency", "latency_ms"), "give different metrics"),
    ],
)
def test_objectives_are_different_metrics(value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings_of(objectives=value)


@pytest.mark.parametrize("name", ["limits", "ignore", "precisions", "objectives"])
@pytest.mark.parametrize("value", [5, None, [1], {"a": 1}])
def test_lists_of_texts(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name}=.*give a list of texts"):
        settings_of(**{name: value})


def test_limits_are_read_at_once() -> None:
    with pytest.raises(LimitError, match="add a unit"):
        settings_of(["latency <= 5"])
    with pytest.raises(LimitError, match="contradict"):
        settings_of(["latency <= 5 ms", "latency >= 6 ms"])
