"""FAULTS 56 to 59 on the journal and on artefacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paretoprune.core.errors import FileError
from paretoprune.store import lines
from paretoprune.store.journal import Journal
from paretoprune.store.run import RunFolder

pytestmark = pytest.mark.fault

CONTENT = bytes(range(256)) * 4


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with RunFolder.open(tmp_path / "a", {"model": "tiny"}) as folder:
        folder.artefact("members").mkdir()
        folder.artefact("members/m.onnx").write_bytes(CONTENT)
        folder.seal("members/m.onnx")
        assert folder.verify("members/m.onnx").read_bytes() == CONTENT
    return tmp_path / "a"


@pytest.mark.parametrize("size", [0, 1, len(CONTENT) - 1, len(CONTENT) + 1])
def test_56_a_truncated_artefact_is_refused(run: Path, size: int) -> None:
    (run / "members" / "m.onnx").write_bytes((CONTENT + b"x")[:size])
    with pytest.raises(FileError, match=rf"m\.onnx has {size} bytes instead of {len(CONTENT)}; delete it"):
        RunFolder.read(run).verify("members/m.onnx")


def test_56_a_missing_or_unfinished_artefact_is_refused(run: Path) -> None:
    (run / "members" / "m.onnx").rename(run / "other.onnx")
    with pytest.raises(FileError, match="cannot read"):
        RunFolder.read(run).verify("members/m.onnx")
    with pytest.raises(FileError, match="was never finished"):
        RunFolder.read(run).verify("other.onnx")


def test_56_a_truncated_journal_keeps_every_whole_line(run: Path) -> None:
    with RunFolder.open(run, {"model": "tiny"}) as folder:
        for number in range(3):
            folder.record("trial", str(number), number)
    path = run / "journal.jsonl"
    whole = path.read_bytes()
    ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        assert len(Journal.read(path).entries) == sum(end <= size for end in ends)


@pytest.mark.parametrize("bit", [0, 1000, len(CONTENT) * 8 - 1])
def test_57_a_flipped_bit_in_an_artefact_is_refused(run: Path, bit: int) -> None:
    flipped = bytearray(CONTENT)
    flipped[bit // 8] ^= 1 << bit % 8
    (run / "members" / "m.onnx").write_bytes(flipped)
    with pytest.raises(FileError, match="was altered"):
        RunFolder.read(run).verify("members/m.onnx")


def test_57_a_flipped_bit_in_the_journal_never_shows_a_wrong_number(run: Path) -> None:
    with RunFolder.open(run, {"model": "tiny"}) as folder:
        for number in range(3):
            folder.record("trial", str(number), {"accuracy": 0.5 + number})
    path = run / "journal.jsonl"
    whole = path.read_bytes()
    right = RunFolder.read(run).all("trial")
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        view = RunFolder.read(run)
        seen = view.all("trial")
        assert seen.items() <= right.items()
        assert len(seen) >= 1
        # all lines are sound, or the damage is counted, or it hit the very end, which is a torn write
        assert len(seen) == 3 or view.quarantined > 0 or at >= whole[:-1].rindex(b"\n")


def written_at(schema: int, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(lines, "SCHEMA", schema)
        with RunFolder.open(run, {"model": "tiny"}) as folder:
            folder.record("trial", "x", {"latency": 5})


def test_58_a_newer_journal_says_upgrade_and_stays_as_it_is(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(lines, "MIGRATIONS", {1: dict})
        written_at(lines.SCHEMA + 1, run, monkeypatch)
    before = (run / "journal.jsonl").read_bytes()
    for attempt in (RunFolder.read, lambda path: RunFolder.open(path, {"model": "tiny"})):
        with pytest.raises(FileError, match="schema 2, this version reads up to 1: upgrade paretoprune"):
            attempt(run)
    assert (run / "journal.jsonl").read_bytes() == before


def test_58_an_older_journal_is_migrated(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written_at(1, run, monkeypatch)

    def rename(line: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps(line).replace('"latency"', '"latency_ms"')
        found = json.loads(text)
        assert isinstance(found, dict)
        return found

    monkeypatch.setattr(lines, "SCHEMA", 2)
    monkeypatch.setattr(lines, "MIGRATIONS", {1: rename})
    assert RunFolder.read(run).done("trial", "x") == {"latency_ms": 5}
    with RunFolder.open(run, {"model": "tiny"}) as folder:
        folder.record("trial", "y", {"latency_ms": 6})
    assert RunFolder.read(run).all("trial") == {"x": {"latency_ms": 5}, "y": {"latency_ms": 6}}


def test_58_an_unknown_old_schema_is_not_guessed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(lines, "SCHEMA", 0)
        _, line = lines.encode(99, {"kind": "trial"})
    with (run / "journal.jsonl").open("ab") as stream:
        stream.write(line)
    assert RunFolder.read(run).quarantined == 1


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "members/../../secret", "link/secret"])
def test_59_no_artefact_lies_outside_the_folder(run: Path, name: str) -> None:
    (run.parent / "secret").write_text("mine")
    (run / "link").symlink_to(run.parent)
    view = RunFolder.read(run)
    for use in (view.artefact, view.verify):
        with pytest.raises(FileError, match=r"outside|leads out"):
            use(name)
