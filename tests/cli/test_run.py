"""One complete run, and everything that can be asked of its folder."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import paretoprune as pp
from paretoprune.store.run import RunFolder

Invoke = Callable[..., Any]
METRICS = ("accuracy", "latency_ms", "energy_mj", "size_bytes", "macs", "speedup")


def rows(found: Any) -> list[dict[str, Any]]:
    assert found.exit_code == 0, found.stderr
    members: list[dict[str, Any]] = json.loads(found.stdout)["members"]
    return members


def test_a_run_ends_with_the_table_the_choice_and_the_page(finished: Path) -> None:
    said = (finished.parents[1] / "stdout").read_text("utf-8")
    assert "c01-fp32" in said
    assert " is chosen: " in said
    assert said.splitlines()[-1] == f"report: {finished / 'report.html'}"
    assert (finished / "report.html").stat().st_size > 100_000
    progress = (finished.parents[1] / "stderr").read_text("utf-8")
    assert "candidates: done, 2 of 2 in" in progress
    assert "Warning" not in progress


def test_front_json_lists_every_candidate_and_one_original(invoke: Invoke, finished: Path) -> None:
    members = rows(invoke("front", finished, "--json"))
    assert [m["name"] for m in members if m["original"]] == ["original"]
    assert [m["precision"] for m in members if m["original"]] == ["fp32"]
    assert len(members) == 6
    keys = ["name", "original", "on_front", "path", "precision", *METRICS]
    for member in members:
        assert member.keys() >= {*keys}
        assert Path(member["path"]).is_absolute()
        assert Path(member["path"]).stat().st_size == member["size_bytes"]
        assert 0 <= member["accuracy"] <= 1
    assert members == pp.read_front(finished).to_rows()


def test_front_csv_and_table(invoke: Invoke, finished: Path) -> None:
    table = list(csv.DictReader(io.StringIO(invoke("front", finished, "--csv").stdout)))
    assert [line["name"] for line in table] == [m["name"] for m in rows(invoke("front", finished, "--json"))]
    shown = invoke("front", finished)
    assert shown.exit_code == 0
    assert all(line["name"] in shown.stdout for line in table)


def test_front_works_while_a_run_holds_the_folder(invoke: Invoke, finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    identity = RunFolder.read(copy).identity
    assert identity is not None
    with RunFolder.open(copy, identity):
        assert len(rows(invoke("front", copy, "--json"))) == 6


def test_a_second_run_resumes_and_measures_nothing_again(invoke: Invoke, finished: Path) -> None:
    files = {p: p.stat().st_mtime_ns for p in (finished / "members").rglob("*") if p.is_file()}
    journal = (finished / "journal.jsonl").read_bytes()
    again = invoke("run", finished.parents[1] / "recipe.toml", "--json")
    assert again.exit_code == 0, again.stderr
    assert f"resuming {finished}: 6 exported files are measured already" in again.stderr
    found = json.loads(again.stdout)
    assert found["members"] == rows(invoke("front", finished, "--json"))
    assert (found["folder"], found["report"]) == (str(finished), str(finished / "report.html"))
    assert found["chosen"] in [m["name"] for m in found["members"] if m["on_front"]]
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert (finished / "journal.jsonl").read_bytes() == journal


def test_quiet_says_nothing_but_the_result(invoke: Invoke, finished: Path) -> None:
    again = invoke("run", finished.parents[1] / "recipe.toml", "-q", "--json")
    assert (again.exit_code, again.stderr) == (0, "")


def test_another_recipe_in_the_same_folder_is_refused_with_the_difference(invoke: Invoke, finished: Path) -> None:
    found = invoke("run", finished.parents[1] / "recipe.toml", "--set", "search.seed=7")
    assert found.exit_code == 4
    assert "settings.seed was 0, is 7" in found.stderr.splitlines()[-1]


def test_limits_that_cannot_be_met_leave_the_front_and_the_page(invoke: Invoke, work: Path) -> None:
    found = invoke("run", work / "recipe.toml", "--set", "limits.size=<= 1 kB", "--set", "target.precisions=['fp32']")
    assert found.exit_code == 3
    assert found.stderr.splitlines()[-1].startswith("error: size <= 1 kB cannot be met: the smallest candidate takes")
    assert "raise the limit to at least" in found.stderr.splitlines()[-1]
    assert "original" in found.stdout
    assert "no member is chosen" in found.stdout
    assert (work / "runs" / "recipe" / "report.html").is_file()


def test_report_is_written_again_anywhere(invoke: Invoke, finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert invoke("report", finished, "--out", page).stdout == f"report: {page}\n"
    text = page.read_text("utf-8")
    assert "c01-fp32" in text
    assert "20th percentile" in text
    assert "64 samples" in text


def test_export_copies_the_measured_file(invoke: Invoke, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    assert invoke("export", finished, "--pick", "smallest", "--out", out).exit_code == 0
    smallest = min(pp.read_front(finished).members, key=lambda m: m.size_bytes)
    assert out.read_bytes() == smallest.path.read_bytes()
    again = invoke("export", finished, "--pick", "smallest", "--out", out)
    assert again.exit_code == 0
    other = next(c for c in pp.read_front(finished).candidates if c.path.read_bytes() != out.read_bytes())
    found = invoke("export", finished, "--pick", other.name, "--out", out)
    assert found.exit_code == 2
    assert "--force" in found.stderr
    assert invoke("export", finished, "--pick", other.name, "--out", out, "--force").exit_code == 0
    assert out.read_bytes() == other.path.read_bytes()


def test_export_to_torch_gives_a_folder_that_loads(invoke: Invoke, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "network"
    assert invoke("export", finished, "--pick", "c01-int8", "--to", "torch", "--out", out).exit_code == 0
    assert pp.load(out).model(torch.zeros(2, 1, 24, 24)).shape == (2, 4)
    found = invoke("export", finished, "--pick", "original", "--to", "torch", "--out", tmp_path / "o")
    assert found.exit_code == 2
    assert "the network that you gave" in found.stderr


def test_export_of_an_unknown_name_offers_the_nearest(invoke: Invoke, finished: Path) -> None:
    found = invoke("export", finished, "--pick", "c01-fp23")
    assert found.exit_code == 2
    assert "did you mean 'c01-fp32'?" in found.stderr


def test_export_refuses_an_altered_file(invoke: Invoke, finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    file = copy / "members" / "c01-fp32.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    found = invoke("export", copy, "--pick", "c01-fp32", "--out", tmp_path / "x.onnx")
    assert found.exit_code == 2
    assert "was altered" in found.stderr
    assert not (tmp_path / "x.onnx").exists()


def test_measure_against_another_file(invoke: Invoke, finished: Path) -> None:
    members = finished / "members"
    found = invoke("measure", members / "c01-fp32.onnx", "--against", members / "original.onnx", "--json")
    assert found.exit_code == 0, found.stderr
    taken = json.loads(found.stdout)
    assert taken["speedup"]["value"] > 0
    assert taken["size_bytes"]["value"] == (members / "c01-fp32.onnx").stat().st_size
    assert taken["energy_mj"]["status"] in ("measured", "estimated")
    shown = invoke("measure", members / "original.onnx")
    assert "latency" in shown.stdout
    assert invoke("measure", members / "nothing.onnx").exit_code == 2
    elsewhere = invoke("measure", members / "original.onnx", "--target", "tensorflow")
    assert elsewhere.exit_code == 2
    assert "offered: onnxruntime, openvino" in elsewhere.stderr


def test_measure_with_a_meter_of_ones_own(
    invoke: Invoke, finished: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paretoprune.targets.meters.WINDOW_S", 0.02)
    monkeypatch.chdir(work)
    file = finished / "members" / "original.onnx"
    taken = json.loads(invoke("measure", file, "--meter", "tiny_net:Meter", "--json").stdout)
    for key in ("energy_mj", "energy_gross_mj", "idle_w", "power_w", "w_per_frame"):
        assert taken[key]["status"] == "measured", key
    assert "read from bench" in taken["energy_mj"]["note"]
    foreign = invoke("measure", file, "--meter", "os:system")
    assert foreign.exit_code == 2
    assert "--meter = 'os:system' leads into 'os'" in foreign.stderr
    none = invoke("measure", file, "--meter", "tiny_net:loss")
    assert none.exit_code == 2
    assert "meter" in none.stderr
    words = invoke("measure", file, "--tokens", "128,32")
    assert words.exit_code == 2
    assert "tokens= is for a language model" in words.stderr


def test_every_energy_that_is_an_estimate_says_so(invoke: Invoke, finished: Path) -> None:
    guessed = ("energy_mj", "energy_analytic_mj", "energy_per_correct_mj", "power_w", "w_per_frame")
    for row in json.loads(invoke("front", finished, "--json").stdout)["members"]:
        assert {key for key in guessed if row[key] is not None} == {*guessed}
        assert row["estimated"] == [key for key in row if key in guessed]
        assert row["energy_gross_mj"] is row["idle_w"] is None
    shown = invoke("measure", finished / "members" / "original.onnx").stdout
    lines = [line for line in shown.splitlines() if line.startswith(("energy", "power"))]
    assert len(lines) == 4
    assert all(" ~" in line and "estimated" in line for line in lines)
    table = invoke("front", finished, "--all").stdout
    assert table.count("~") > 10
    assert "per correct" in table


@pytest.mark.parametrize("where", ["recipe", "reference"])
def test_inspect(invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.chdir(work)
    words = ["recipe.toml"] if where == "recipe" else ["tiny_net:build", "--example", "tiny_net:example"]
    found = invoke("inspect", *words, "--json")
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    axes = {axis["id"]: axis for axis in told["axes"]}
    first, second, head = 9 * 16 * 144, 9 * 16 * 48 * 144, 48 * 4
    assert told["macs"] == first + second + head == sum(layer["macs"] for layer in told["layers"])
    assert axes["first"]["prunable"]
    assert (axes["first"]["size"], axes["first"]["macs"]) == (16, first + second)
    assert axes["first"]["parameters"] == 16 * 9 + 16 + 48 * 16 * 9
    assert not axes["head"]["prunable"]
    assert "output" in axes["head"]["why"]
    shown = invoke("inspect", *words)
    assert "axes can be pruned" in shown.stdout


def test_inspect_times_layers_only_if_asked(invoke: Invoke, work: Path) -> None:
    found = json.loads(invoke("inspect", work / "recipe.toml", "--time", "--json").stdout)
    assert all(layer["ms"] > 0 for layer in found["layers"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tiny_net:build"], "--shape"),
        (["tiny_net:build", "--shape", "1,x"], "whole numbers"),
        (["tiny_net:build", "--shape", "1,24,24", "--dtype", "float33"], "dtype = 'float33'"),
        (["tiny_net:bild", "--shape", "1,24,24"], "has no attribute 'bild'"),
        (["no_such_net:build", "--shape", "1,24,24"], "cannot import 'no_such_net'"),
        (["tiny_net:build_number", "--shape", "1,24,24"], "expected a torch.nn.Module"),
    ],
)
def test_inspect_says_what_is_missing(
    invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(work)
    found = invoke("inspect", *words)
    assert (found.exit_code, found.stdout) == (2, "")
    assert says in found.stderr
    assert found.stderr.count("\n") == 1


def test_front_explains_a_member_and_shows_the_rest_of_its_figures(finished: Path, invoke: Invoke) -> None:
    rows = json.loads(invoke("front", finished, "--json").stdout)["members"]
    name = next(row["name"] for row in rows if row["name"].startswith("c"))
    told = invoke("front", finished, "--why", name)
    assert told.exit_code == 0
    assert told.stdout.startswith(f"{name} (")
    assert "What was cut" in told.stdout
    assert "Recovery: " in told.stdout
    data = json.loads(invoke("front", finished, "--why", name, "--json").stdout)
    assert data["name"] == name
    assert data["axes"][0]["curve"]
    everything = invoke("front", finished, "--all").stdout
    assert "recov." in everything
    wrong = invoke("front", finished, "--why", "c99")
    assert wrong.exit_code == 2
    assert "no candidate 'c99'" in wrong.stderr
    assert invoke("front", finished, "--why", name, "--csv").exit_code == 2
