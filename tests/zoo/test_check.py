"""The command of the zoo: limits of time and memory, the journal, the table."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from zoo import check, table


def test_a_network_that_takes_too_long_is_stopped_and_its_row_says_so() -> None:
    row = check.answered("own/autoencoder", "inner", limit=0.05)
    assert (row["network"], row["kind"], row["status"]) == ("own/autoencoder", "inner", "timeout")


def test_a_network_that_takes_too_much_memory_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LIMIT_MB", 1)
    assert check.answered("own/autoencoder", "inner")["status"] == "memory"


def broken(file: str, name: str, kind: str, limit: float) -> None:
    os._exit(7)


def test_a_child_that_dies_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LIMIT_S", {"unknown": 60.0})
    monkeypatch.setattr(check.child, "into", broken)
    row = check.answered("own/autoencoder", "unknown")
    assert row["status"] == "crash"
    assert "status 7" in row["why"]


def rows(name: str, kind: str, limit: Any = None) -> dict[str, Any]:
    status = "wrong" if kind == "all" else "exact"
    return {
        "network": name,
        "kind": kind,
        "status": status,
        "cut": 0.5,
        "axes_s": 1.0,
        "error": 1e-9,
        "axes": 2,
        "prunable": 1,
    }


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answered(name: str, kind: str, limit: Any = None) -> dict[str, Any]:
        asked.append(name)
        assert all(line.endswith("}") for line in journal.read_text().splitlines())
        return rows(name, kind)

    monkeypatch.setattr(check, "answered", answered)
    journal = tmp_path / "zoo.jsonl"
    journal.write_text(json.dumps(rows("own/unet", "inner")) + '\n{"network": "own/va')
    options = ["--only", "own/unet", "--only", "own/vae", "--axes", "inner", "--resume"]
    files = ["--results", str(tmp_path / "zoo.json"), "--table", str(tmp_path / "zoo.md")]
    assert check.main([*options, *files]) == 0
    assert asked == ["own/vae"]
    result = json.loads((tmp_path / "zoo.json").read_text())
    assert [r["network"] for r in result["rows"]] == ["own/unet", "own/vae"]
    assert {"commit", "command", "machine", "versions"} <= result.keys()
    assert "| own/vae |" in (tmp_path / "zoo.md").read_text()
    assert not journal.exists()


def test_a_wrong_network_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "answered", rows)
    files = ["--results", str(tmp_path / "zoo.json"), "--table", str(tmp_path / "zoo.md")]
    assert check.main(["--only", "own/unet", *files]) == 1


def test_the_table_names_every_reason() -> None:
    refused = {"network": "x", "kind": "inner", "status": "refused", "why": "ModelError: a | b"}
    text = "\n".join(table.reasons([refused]))
    assert "x: refused, ModelError: a | b" in text
    assert "\\|" in table.lines(("a",), [["p|q"]])[-1]
