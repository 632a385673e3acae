"""Threads and batch sizes compete where asked: a setting of a file is a candidate of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import paretoprune as pp
from paretoprune.core.errors import UsageError
from paretoprune.pipeline.settings import settings_of
from paretoprune.targets import OnnxRuntime


class Own(OnnxRuntime):
    """A user's target."""

    name = "mine"


def test_every_file_is_measured_at_each_setting(searching: Callable[..., pp.Front], tmp_path: Path) -> None:
    front = searching(tune_threads=(1, 2), tune_batch=[1, 8])
    rows = {row["name"]: row for row in front.to_rows()}
    plain = {name for name in rows if "@" not in name}
    assert set(rows) == plain | {f"{n}@{s}" for n in plain for s in ("2t-b1", "1t-b8", "2t-b8")}
    assert [n for n, row in rows.items() if row["original"]] == ["original"]
    assert all((rows[n]["threads"], rows[n]["batch"]) == (1, 1) for n in plain)
    for name in plain:
        one, many = rows[name], rows[f"{name}@2t-b8"]
        assert (many["threads"], many["batch"]) == (2, 8)
        same = ("path", "accuracy", "validation", "size_bytes", "macs", "parameters", "precision")
        assert {k: one[k] for k in same} == {k: many[k] for k in same}
        assert many["memory_bytes"] is None
        assert min(many["latency_ms"], many["energy_mj"], many["speedup"]) > 0
    assert rows["original@1t-b8"]["latency_ms"] < 2 * rows["original"]["latency_ms"]  # of one sample, not of eight
    again = searching(tune_threads=(1, 2), tune_batch=[1, 8])
    assert again.to_rows() == front.to_rows()


def test_a_users_target_has_its_own_threads(searching: Callable[..., pp.Front], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'mine'.*tune_batch"):
        searching(target=Own(), tune_threads=(2,))
    assert not (tmp_path / "run").exists()
    front = searching(target=Own(), tune_batch=(4,), candidates=1)
    assert {c.name for c in front.candidates} == {"original", "original@1t-b4", "c01-fp32", "c01-fp32@1t-b4"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tune_batch": (0,)}, "tune_batch=0"),
        ({"tune_threads": (1, 1)}, "different numbers"),
        ({"tune_batch": "8"}, "list of whole numbers"),
        ({"tune_batch": (True,)}, "tune_batch=True"),
        ({"tune_threads": (1.5,)}, "tune_threads=1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        settings_of(**given)  # type: ignore[arg-type]
