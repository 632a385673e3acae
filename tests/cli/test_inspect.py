"""`inspect`: what each axis controls, as a table and as JSON, also of a network with hundreds of axes."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from paretoprune.cli.inspect_tables import ROWS, counted, tables
from paretoprune.pipeline.survey import Survey, survey

Invoke = Callable[..., Any]
MANY = """
import torch
from torch import nn


def build(blocks=120):
    layers = []
    for i in range(blocks):
        layers += [nn.Linear(4 + i % 7, 4 + (i + 1) % 7), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4 + blocks % 7, 2))


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return self.inner(x) * 2 if x.sum() > 0 else x


def frozen():
    return nn.Sequential(nn.Linear(6, 8), Part(), nn.Linear(8, 16), nn.Softmax(-1), nn.Linear(16, 2))
"""


class Wide(nn.Module):
    """`parts` branches with a long name, each frozen by a softmax of its own."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.a_branch_with_a_rather_long_name_indeed = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8), nn.Softmax(-1), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
            for _ in range(parts)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum((part(x) for part in self.a_branch_with_a_rather_long_name_indeed), torch.zeros(()))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "many_axes.py").write_text(MANY, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "many_axes", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def wide() -> Survey:
    return survey(Wide(40), torch.randn(2, 6))


def shown(found: Survey, width: int, *, everything: bool = False) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, markup=False)
    for table in tables(found, everything=everything):
        console.print(table)
    return out.getvalue().splitlines()


def test_json_says_what_every_axis_controls(invoke: Invoke, here: Path) -> None:
    found = invoke("inspect", "many_axes:build", "--shape", "4", "--json")
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    axes = {a["id"]: a for a in told["axes"]}
    assert sum(a["prunable"] for a in axes.values()) == 120
    for i in range(1, 120):
        size, into, out = 4 + i % 7, 4 + (i - 1) % 7, 4 + (i + 1) % 7
        axis = axes[str(2 * (i - 1))]
        assert (axis["size"], axis["kind"], axis["why"]) == (size, "channel", "")
        assert axis["macs"] == into * size + size * out
        assert axis["parameters"] == into * size + size + size * out
    assert set(axes["0"]) == {"id", "size", "kind", "prunable", "why", "parameters", "macs"}
    assert axes["240"]["why"] == "it is an output of the network"
    assert told["macs"] == sum(layer["macs"] for layer in told["layers"])


def test_the_table_of_120_axes_is_cut_with_a_count_and_all_shows_them(invoke: Invoke, here: Path) -> None:
    found = invoke("inspect", "many_axes:build", "--shape", "4")
    assert found.exit_code == 0, found.stderr
    lines = found.stdout.splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 100
    assert f"… and {120 - ROWS} more axes that can be pruned; --all shows them" in lines
    assert "120 of 122 axes can be pruned" in lines[-1]
    whole = invoke("inspect", "many_axes:build", "--shape", "4", "--all").stdout.splitlines()
    assert {line.split()[0] for line in whole if "channel" in line} == {str(2 * i) for i in range(120)}
    assert not any("--all" in line for line in whole)


def test_the_largest_axes_come_first(invoke: Invoke, here: Path) -> None:
    lines = invoke("inspect", "many_axes:build", "--shape", "4").stdout.splitlines()
    macs = [int(line.split()[5]) for line in lines if "channel" in line]
    assert len(macs) == ROWS
    assert macs == sorted(macs, reverse=True)


def test_frozen_axes_say_why_in_words(invoke: Invoke, here: Path) -> None:
    found = invoke("inspect", "many_axes:frozen", "--shape", "6")
    assert found.exit_code == 0, found.stderr
    text = re.sub(r"\s+", " ", found.stdout)
    for words in ("it is an input of the network", "it is an output of the network", "softmax", "a branch depends on"):
        assert words in text
    assert "'1' (Part) cannot be captured" in found.stderr
    axes = {
        a["id"]: a for a in json.loads(invoke("inspect", "many_axes:frozen", "--shape", "6", "--json").stdout)["axes"]
    }
    assert axes["2"]["kind"] == "frozen"
    assert axes["2"]["parameters"] == 8 * 16 + 16 + 16 * 2


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("everything", [False, True])
def test_lines_fit_the_terminal_and_no_number_is_broken(wide: Survey, width: int, everything: bool) -> None:
    lines = shown(wide, width, everything=everything)
    assert max(map(len, lines)) <= width
    text = "".join(line.replace(" ", "") for line in lines)
    for axis in wide.axes:
        if axis.prunable and everything:
            assert counted(axis.macs).replace(" ", "") in text
    if not everything:
        assert len(lines) < 120
        assert any(line.startswith("… and 15 more axes that can be pruned") for line in lines)


def test_frozen_axes_of_one_reason_are_one_row(wide: Survey) -> None:
    text = re.sub(r"\s+", " ", " ".join(shown(wide, 120)))
    assert sum(not a.prunable for a in wide.axes) > 40
    assert text.count("softmax") <= 3
    assert " 40 " in text


def test_equal_layers_are_one_row(wide: Survey) -> None:
    rows = [line.split() for line in shown(wide, 120) if line.startswith("linear ")]
    assert [(row[1], row[2]) for row in rows] == [("6→8", "40"), ("8→16", "40"), ("16→3", "40")]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (64, "64"), (999, "999"), (1180, "1.18 k"), (52_600_000, "52.6 M"), (3 * 10**9, "3.00 G")],
)
def test_counts_are_short(value: int, text: str) -> None:
    assert counted(value) == text


class Stage(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(into, out), nn.Linear(out, out)
        self.short = nn.Identity() if into == out else nn.Linear(into, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.short(x) + self.b(torch.relu(self.a(x)))
        return result


def test_residual_blocks_are_listed_and_those_that_stay_with_the_reason() -> None:
    found = survey(nn.Sequential(Stage(6, 6), Stage(6, 8), *(Stage(8, 8) for _ in range(40))), torch.randn(2, 6))
    facts = found.to_json()["blocks"]
    assert facts[0] == {"name": "0", "removable": True, "why": "", "parameters": 84, "macs": 72}
    assert (facts[1]["removable"], "shape" in facts[1]["why"]) == (False, True)
    console = Console(file=io.StringIO(), width=100)
    for table in tables(found, everything=False):
        console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "residual blocks that can be dropped" in shown
    assert "changes the shape" in shown
    assert f"{41 - ROWS} more residual blocks; --all shows them" in shown
