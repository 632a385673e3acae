"""The journal: what goes in comes out, in order, and nothing else does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paretoprune.core.errors import FileError, StoreError, UsageError
from paretoprune.store import lines
from paretoprune.store.journal import Journal

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def records(journal: Journal) -> list[Any]:
    return [entry.record for entry in journal.entries]


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_what_is_appended_is_read_back(tmp_path: Path, given_records: list[dict[str, Any]]) -> None:
    path = tmp_path / "journal.jsonl"
    path.unlink(missing_ok=True)
    journal = Journal.open(path)
    for record in given_records:
        journal.append(record)
    journal.close()
    assert records(Journal.read(path)) == given_records
    again = Journal.open(path)
    assert records(again) == given_records
    assert [entry.seq for entry in again.entries] == list(range(1, len(given_records) + 1))
    again.close()


@given(st.integers(1, 10**6), st.dictionaries(st.text(), JSON, max_size=3), st.data())
def test_a_line_is_ascii_and_any_changed_byte_is_noticed(seq: int, record: dict[str, Any], data: st.DataObject) -> None:
    entry, line = lines.encode(seq, record)
    assert line.isascii()
    assert line.index(b"\n") == len(line) - 1
    assert lines.decode(line[:-1], Path("j")) == entry
    at = data.draw(st.integers(0, len(line) - 2))
    altered = bytearray(line[:-1])
    altered[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(lines.LineError):
        lines.decode(bytes(altered), Path("j"))


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j")
    journal.append({"x": [0.1 + 0.2, 1e-310, math.inf, 2**70]})
    journal.close()
    assert records(Journal.read(tmp_path / "j")) == [{"x": [0.1 + 0.2, 1e-310, math.inf, 2**70]}]


def test_numbering_goes_on_after_a_second_opening(tmp_path: Path) -> None:
    for number in range(3):
        journal = Journal.open(tmp_path / "j")
        assert journal.append({"n": number}).seq == number + 1
        journal.close()


def test_what_is_not_plain_data_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j")
    with pytest.raises(UsageError, match="numbers, text, lists and dicts"):
        journal.append({"path": Path("x")})
    assert (tmp_path / "j").read_bytes() == b""
    assert journal.append({"n": 1}).seq == 1
    journal.close()


def test_two_writers_without_the_lock_are_noticed(tmp_path: Path) -> None:
    one, two = Journal.open(tmp_path / "j"), Journal.open(tmp_path / "j")
    one.append({"n": 1})
    with pytest.raises(StoreError, match="changed by another process"):
        two.append({"n": 2})
    assert records(Journal.read(tmp_path / "j")) == [{"n": 1}]
    one.close()
    two.close()


def test_a_deleted_journal_is_noticed_at_the_next_record(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j")
    (tmp_path / "j").unlink()
    with pytest.raises(StoreError, match="deleted while in use"):
        journal.append({"n": 1})
    journal.close()


def test_a_journal_that_is_closed_or_only_read_takes_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j")
    journal.append({"n": 1})
    journal.close()
    for unusable in (journal, Journal.read(tmp_path / "j")):
        with pytest.raises(StoreError, match="closed or open for reading only"):
            unusable.append({"n": 2})


def test_a_repeated_line_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal.open(path)
    journal.append({"n": 1})
    journal.close()
    path.write_bytes(path.read_bytes() * 2)
    assert records(Journal.read(path)) == [{"n": 1}]
    assert Journal.read(path).quarantined == 1


def test_a_deleted_line_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal.open(path)
    for number in range(4):
        journal.append({"n": number})
    assert journal.missing == 0
    journal.close()
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(kept[0] + kept[3])
    assert Journal.read(path).missing == 2
    assert Journal.read(path).quarantined == 0


def test_a_linked_journal_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "j").symlink_to(victim)
    with pytest.raises(FileError, match="is a link"):
        Journal.open(tmp_path / "j")
    assert victim.read_text() == "mine"


def test_interrupted_between_write_and_sync_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.open(tmp_path / "j")
    journal.append({"n": 1})
    before = (tmp_path / "j").read_bytes()

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append({"n": 2})
    assert (tmp_path / "j").read_bytes() == before
    assert journal.append({"n": 2}).seq == 2
    journal.close()
    assert records(Journal.read(tmp_path / "j")) == [{"n": 1}, {"n": 2}]


def test_reading_changes_nothing_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal.open(path)
    journal.append({"n": 1})
    journal.close()
    damaged = path.read_bytes() + b"garbage\n" + b"torn"
    path.write_bytes(damaged)
    assert Journal.read(path).quarantined == 1
    assert path.read_bytes() == damaged
    assert [file.name for file in tmp_path.iterdir()] == ["j"]


def test_a_line_is_readable_without_us(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j")
    journal.append({"kind": "trial"})
    journal.close()
    text = (tmp_path / "j").read_text().partition(" ")[2]
    assert json.loads(text)["record"] == {"kind": "trial"}
