"""The run folder as the pipeline uses it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paretoprune.core.errors import FileError, StoreError, UsageError
from paretoprune.store.run import RunFolder

IDENTITY = {"model": {"name": "tiny", "fingerprint": "ab"}, "recipe": {"budget": 20}}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder.open(tmp_path / "runs" / "a", IDENTITY) as opened:
        yield opened


def test_a_stage_runs_once_across_openings(tmp_path: Path) -> None:
    calls: list[str] = []

    def stage() -> dict[str, Any]:
        calls.append("x")
        return {"width": 3}

    for _ in range(3):
        with RunFolder.open(tmp_path, IDENTITY) as folder:
            assert folder.once("cost", "conv1", stage) == {"width": 3}
            assert folder.once("cost", "conv1", stage) == {"width": 3}
    assert calls == ["x"]


def test_the_first_answer_looks_like_every_later_one(folder: RunFolder) -> None:
    first = folder.once("stage", "a", lambda: {"pair": (1, 2), 3: "x"})
    assert first == {"pair": [1, 2], "3": "x"} == folder.once("stage", "a", dict)


def test_none_is_a_payload(folder: RunFolder) -> None:
    calls: list[int] = []
    for _ in range(2):
        assert folder.once("energy", "a", lambda: calls.append(1)) is None
    assert calls == [1]
    assert folder.has("energy", "a")
    assert not folder.has("energy", "b")


def test_a_stage_that_fails_is_not_recorded(folder: RunFolder) -> None:
    with pytest.raises(ZeroDivisionError):
        folder.once("stage", "a", lambda: 1 / 0)
    assert folder.once("stage", "a", lambda: 1) == 1


def test_payloads_are_copies(folder: RunFolder) -> None:
    payload = {"kept": [1, 2]}
    folder.record("trial", "1", payload)["kept"].append(3)
    payload["kept"].append(4)
    folder.all("trial")["1"]["kept"].append(5)
    assert folder.done("trial", "1") == {"kept": [1, 2]}


def test_a_second_record_under_one_key_is_refused_unless_asked_for(folder: RunFolder) -> None:
    folder.record("trial", "1", 1)
    with pytest.raises(UsageError, match="recorded already"):
        folder.record("trial", "1", 2)
    assert folder.done("trial", "1") == 1
    folder.record("trial", "1", 2, replace=True)
    assert RunFolder.read(folder.path).done("trial", "1") == 2


def test_all_keeps_the_order_and_the_kinds_apart(folder: RunFolder) -> None:
    for key in ("b", "a", "c"):
        folder.record("trial", key, key.upper())
    folder.record("other", "z", 0)
    assert list(folder.all("trial").items()) == [("b", "B"), ("a", "A"), ("c", "C")]
    assert folder.all("nothing") == {}


def test_reading_needs_no_lock_and_sees_what_was_recorded(folder: RunFolder) -> None:
    folder.record("trial", "1", {"accuracy": 0.5})
    view = RunFolder.read(folder.path)
    assert view.all("trial") == {"1": {"accuracy": 0.5}}
    assert view.identity == IDENTITY
    assert view.quarantined == 0
    assert not hasattr(view, "record")


def test_own_kinds_and_own_files_are_out_of_reach(folder: RunFolder) -> None:
    with pytest.raises(UsageError, match="store's own"):
        folder.record("_identity", "", {})
    for name in ("journal.jsonl", "./lock", "journal.quarantine", "lock.holder"):
        with pytest.raises(FileError, match="belongs to the journal"):
            folder.artefact(name)


def test_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no run in"):
        RunFolder.read(tmp_path / "nowhere")
    with pytest.raises(FileError, match="no run in"):
        RunFolder.open(tmp_path, IDENTITY, create=False)
    assert list(tmp_path.iterdir()) == []
    RunFolder.open(tmp_path, IDENTITY).close()
    RunFolder.open(tmp_path, IDENTITY, create=False).close()


def test_a_closed_folder_takes_nothing_and_can_be_opened_again(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, IDENTITY)
    folder.close()
    folder.close()
    with pytest.raises(StoreError, match="closed"):
        folder.record("trial", "1", 1)
    RunFolder.open(tmp_path, IDENTITY).close()


def test_an_opening_that_is_refused_gives_the_lock_back(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, IDENTITY).close()
    with pytest.raises(StoreError, match="another search"):
        RunFolder.open(tmp_path, {})
    RunFolder.open(tmp_path, IDENTITY).close()


def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunFolder.open("runs/a", IDENTITY) as folder:
        monkeypatch.chdir("/")
        assert folder.artefact("x.onnx") == tmp_path / "runs" / "a" / "x.onnx"
        folder.record("trial", "1", 1)
    assert not (tmp_path / "runs" / "a" / "lock.holder").exists()


def test_a_sealed_artefact_verifies_under_any_spelling(folder: RunFolder) -> None:
    folder.artefact("a.bin").write_bytes(b"12345")
    folder.seal("./a.bin")
    assert RunFolder.read(folder.path).verify("a.bin").read_bytes() == b"12345"
    folder.artefact("a.bin").write_bytes(b"123456")
    folder.seal("a.bin")
    assert folder.verify("a.bin").stat().st_size == 6
