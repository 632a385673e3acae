"""A search whose candidates recover together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import paretoprune as pp
from paretoprune.core.errors import PruneError
from paretoprune.pipeline import candidates, together
from paretoprune.recover.resume import Checkpoint
from paretoprune.store.run import RunFolder

Searching = Callable[..., pp.Front]
HOW = {"nested": True, "candidates": 3, "steps": 8}


class Killed(BaseException):
    pass


def networks(folder: Path) -> dict[str, Any]:
    return RunFolder.read(folder).all("network")


def weights(folder: Path) -> dict[str, bytes]:
    return {f.parent.name: f.read_bytes() for f in sorted(folder.glob("members/c??/weights.safetensors"))}


@pytest.fixture
def trained_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training does not help a network of random weights; here it is looked at all the same."""
    monkeypatch.setattr(candidates, "better", lambda study, trained, start, how: (trained, how))


@pytest.mark.usefixtures("trained_kept")
def test_candidates_are_trained_in_one_network_and_killed_anywhere_end_the_same(
    searching: Searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = searching(**HOW)
    told = [n["recovery"] for n in networks(tmp_path / "run").values()]
    assert len(told) == len(front.candidates) - 1 >= 2
    assert all(f"steps of a nested network of {len(told)} and 2 alone" in t for t in told)
    assert not (tmp_path / "run" / "nested").exists()
    whole = weights(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "whole")
    write, record, written = Checkpoint.write, RunFolder.record, []

    def until_third(self: Checkpoint, step: int, state: Any) -> None:
        write(self, step, state)
        written.append(step)
        if len(written) == 3:
            raise Killed

    def until_second(self: RunFolder, kind: str, key: str, payload: Any, **options: Any) -> Any:
        if (kind, key) == ("network", "c02"):
            raise Killed
        return record(self, kind, key, payload, **options)

    for home, name, killing in ((Checkpoint, "write", until_third), (RunFolder, "record", until_second)):
        with monkeypatch.context() as patch:
            patch.setattr(home, name, killing)
            with pytest.raises(Killed):
                searching(**HOW)
    searching(**HOW)
    assert weights(tmp_path / "run") == whole


def test_where_it_cannot_be_trained_candidates_recover_alone(
    searching: Searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise PruneError("the loss is nan at step 3")

    monkeypatch.setattr(together, "distill_nested", fail)
    searching(**HOW)
    run = RunFolder.read(tmp_path / "run")
    assert run.done("nested", "failure") == {"cause": "the loss is nan at step 3", "type": "PruneError"}
    assert all("8 steps of distillation" in n["recovery"] for n in networks(tmp_path / "run").values())
