from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from paretoprune.targets import CostTable, LayerSpec, OnnxRuntime, staircase
from paretoprune.targets import cache as cache_room

CONV = LayerSpec("conv", 32, 32, (3, 3), padding=(1, 1), spatial=(16, 16))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARETOPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Widths that were measured; the clock counts in steps of 16."""
    found: list[int] = []

    def measure(_target, spec, _precision):
        found.append(spec.outputs)
        return -(-spec.outputs // 16) * 0.016

    monkeypatch.setattr("paretoprune.targets.cost.measure_layer", measure)
    return found


def test_the_staircase_is_measured_once_for_a_machine(target, folder, calls):
    table = CostTable.cached(target)
    assert staircase(table).step == 16
    table.keep()
    taken = len(calls)
    again = CostTable.cached(OnnxRuntime())
    assert staircase(again) == staircase(table)
    assert taken == len(calls) > 0
    assert len(list(folder.glob("*.json"))) == 1


def test_another_target_is_measured_itself(target, folder, calls):
    table = CostTable.cached(target)
    table.cost_ms(CONV)
    table.keep()
    assert len(CostTable.cached(OnnxRuntime(threads=2))) == 0


def test_what_two_runs_found_is_joined(target, folder, calls):
    one, two = CostTable.cached(target), CostTable.cached(target)
    one.cost_ms(CONV)
    two.cost_ms(CONV, "int8")
    one.keep()
    two.keep()
    assert len(CostTable.cached(target)) == 2


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "other schema", "zero", "a list", "nested", "other machine"]
)
def test_57_a_damaged_cache_is_measured_again(target, folder, calls, damage):
    table = CostTable.cached(target)
    table.cost_ms(CONV)
    table.keep()
    (file,) = folder.glob("*.json")
    text, entry = file.read_text(), json.loads(file.read_text())
    if damage == "zero":
        entry["payload"]["costs"][0]["ms"] = 0.0
    elif damage == "other machine":
        entry["payload"]["target"] = "somewhere"
    entry["sha256"] = cache_room._digest(entry["payload"])
    bad = {
        "truncated": text[: len(text) // 2],
        "flipped": text.replace("0.032", "0.033"),
        "other schema": json.dumps({**entry, "schema": 99}),
        "a list": "[1]",
        "nested": "[" * 100_000,
    }.get(damage, json.dumps(entry))
    assert bad != text
    file.write_text(bad)
    fresh = CostTable.cached(target)
    assert len(fresh) == 0
    fresh.cost_ms(CONV)
    fresh.keep()
    assert len(CostTable.cached(target)) == 1


@pytest.mark.fault
def test_05_a_cache_that_cannot_be_written_is_done_without(target, tmp_path, monkeypatch, calls):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PARETOPRUNE_CACHE", str(tmp_path / "file" / "below"))
    table = CostTable.cached(target)
    table.cost_ms(CONV)
    table.keep()
    monkeypatch.setenv("PARETOPRUNE_CACHE", "off")
    table.cost_ms(CONV, "int8")
    table.keep()
    assert len(CostTable.cached(target)) == 0


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv("PARETOPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_room.cache_folder() == tmp_path / "paretoprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_room.cache_folder() == tmp_path / ".cache" / "paretoprune"


def test_writers_do_not_mix(folder):
    """Several processes at once: whole files only."""
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.starmap(cache_room.write, [("name", list(range(n))) for n in range(1, 200)])
    kept = cache_room.read("name")
    assert kept == list(range(len(kept)))
