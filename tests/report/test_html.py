"""The page: what it says, that it is complete in itself, and that it is written whole or not at all."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from paretoprune.core.candidate import Candidate
from paretoprune.core.errors import StoreError
from paretoprune.core.measurement import Measurement
from paretoprune.core.plan import Plan
from paretoprune.report import ReportData, RunFacts, html
from paretoprune.report.cuts import cuts
from paretoprune.report.html import render, write_report


class Page(HTMLParser):
    """Elements with their attributes, text outside scripts and styles, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif not self._inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def payload(self) -> Any:
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module", autouse=True)
def _plotly_once() -> Any:
    """4.8 MB are read once; one test below takes the real thing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "_plotly", lambda: "var Plotly;")
        yield


def test_the_page_shows_the_run(data: ReportData) -> None:
    page = Page(render(data))
    for words in (
        "a run",
        "5 networks measured on the exported files",
        "The chosen member: half-int8",
        "original 98.0 %, 1.1 points less",
        "96.9 %",
        "0.388 to 0.408",
        "~6.00 mJ",
        "accuracy drop <= 2 points",
        "The limit size <= 9 MB lies outside",
        "layer2.conv1",
        "16 of 32",
        "One thread.",
        "a runtime 1.0",
        "4.50 s",
        "2 × out of memory",
        "1 journal line was set aside",
    ):
        assert words in page.text, words
    assert [row["name"] for row in page.payload["rows"]] == [c.name for c in data.rows]


def test_nothing_is_fetched_and_only_our_scripts_may_run(data: ReportData) -> None:
    text = render(data)
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base", "form")
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.findall(r"url\(|@import", text[: text.index("</style>")])
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv"))
    assert policy is not None
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    real = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts[1:]}
    assert len(page.scripts) == 3
    assert allowed == real
    assert "default-src 'none'" in policy
    assert "unsafe-inline'; img" in policy
    assert "unsafe-eval" not in policy


def test_plotly_comes_whole_and_cannot_end_its_element() -> None:
    from plotly.offline import get_plotlyjs

    text = html._script(str(get_plotlyjs()))
    assert len(text) > 1_000_000
    assert not re.search(r"</script|<!--|\r", text, re.IGNORECASE)
    assert html._script("a</SCRIPT>b<!--c\r\nd") == "a<\\/SCRIPT>b<\\!--c\nd"


def test_what_was_not_taken_is_said_and_is_not_zero(data: ReportData) -> None:
    rows = list(data.rows)
    left = {k: v for k, v in rows[2].measurements.items() if k != "energy_mj"}
    left["accuracy"] = Measurement(float("nan"), float("nan"), float("nan"), 1, "share")
    rows[2] = dataclasses.replace(rows[2], measurements=left)
    text = render(dataclasses.replace(data, rows=tuple(rows)))
    page = Page(text)
    assert "not taken" in page.text
    assert "not a number" in page.text
    assert "NaN" not in page.scripts[0]
    assert {p["row"] for p in page.payload["panels"][0]["points"]} == {0, 1, 3, 4}


def test_a_run_with_nothing_in_it_still_gives_a_page() -> None:
    page = Page(render(ReportData("empty", (), {}, facts=RunFacts(failures=(("every export failed", 12),)))))
    assert "No candidate was measured" in page.text
    assert "12 × every export failed" in page.text
    assert page.payload == {"rows": [], "panels": []}


def test_networks_that_share_a_plan_share_its_bars(data: ReportData) -> None:
    shared, small = cuts(data)
    assert shared.rows == (2, 3)
    assert (shared.removed, shared.total, shared.chosen) == (24, 56, True)
    assert [(b.name, b.kept, b.size) for b in shared.bars] == [("layer1.conv1", 8, 16), ("layer2.conv1", 16, 32)]
    assert [b.name for b in small.bars] == ["layer1.conv1"]  # layer2 is named in the plan, but keeps everything
    assert small.untouched == 2


def test_an_axis_of_unknown_size_is_shown_as_such(make: Callable[..., Candidate]) -> None:
    row = dataclasses.replace(make("odd", 0.9, 1.0), plan=Plan({"ghost": (0, 1, 2)}))
    axes = {"layer1.conv1": 16}
    (cut,) = cuts(ReportData("t", (row,), axes))
    assert [(b.name, b.kept, b.size, b.share) for b in cut.bars] == [("ghost", 3, None, None)]
    assert "3 of unknown" in Page(render(ReportData("t", (row,), axes))).text


def test_a_users_own_measurement_has_its_column(data: ReportData) -> None:
    taken = {**data.rows[1].measurements, "boot_time": Measurement(3.0, 2.0, 4.0, 5, "s")}
    rows = (data.rows[0], dataclasses.replace(data.rows[1], measurements=taken))
    page = Page(render(dataclasses.replace(data, rows=rows, chosen="")))
    assert "Boot time" in page.text
    assert "2.00 to 4.00" in page.text


def test_the_page_is_written_whole_or_not_at_all(
    data: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    assert write_report(data, path) == path
    before = path.read_bytes()
    assert before.endswith(b"</html>")
    assert list(tmp_path.iterdir()) == [path]

    def full(self: Path, page: bytes) -> int:
        with self.open("wb") as file:
            file.write(page[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match="No space left on device; choose a folder with room"):
        write_report(dataclasses.replace(data, title="other"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(data: ReportData, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        write_report(data, tmp_path / "nowhere" / "report.html")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_the_picture_is_drawn_in_a_browser_without_a_complaint(
    data: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plotly.offline import get_plotlyjs

    monkeypatch.setattr(html, "_plotly", get_plotlyjs)
    page = write_report(data, tmp_path / "report.html")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    flags += " --enable-logging=stderr --virtual-time-budget=20000"
    done = subprocess.run(
        ["chromium", *flags.split(), f"--user-data-dir={tmp_path}/profile", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert 'class="main-svg"' in done.stdout
    assert '<html lang="en" class="live">' in done.stdout
    assert done.stdout.count('aria-sort="none"') >= 10
    assert "CONSOLE" not in done.stderr
