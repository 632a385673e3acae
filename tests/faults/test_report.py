"""FAULTS 64: names that are markup, script or terminal commands are shown as the text they are."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from paretoprune.core.candidate import Candidate
from paretoprune.core.measurement import Measurement
from paretoprune.core.plan import Plan
from paretoprune.report import LimitFacts, LimitLine, ReportData, RunFacts, html
from paretoprune.report.html import render
from paretoprune.report.progress import progress
from paretoprune.report.terminal import front_table, summary

HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'-alert(1)-'",
    "<!--<script>",
    "{{ 7*7 }}{% raw %}",
    "&lt;b&gt;",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202egnp.exe\u2066",
    "a\u2028b\u2029c",
    "\x9b2J\x00\ud800",
    "[red]x[/red][link=https://x]y[/link]",
    "</style><svg onload=alert(1)>",
]
DANGER = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069]")


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def row(name: str, original: bool = False) -> Candidate:
    taken = {
        "accuracy": Measurement(0.9, 0.8, 0.95, 100, name, note=name),
        "latency_ms": Measurement(1.0, 0.9, 1.1, 50, "ms", "estimated", note=name),
        name: Measurement(1.0, 1.0, 1.0, 1, name),
    }
    return Candidate(name, Plan({name: (0,), "other": (0, 1)}), name, Path(name), taken, original=original)


def data_of(text: str) -> ReportData:
    facts = RunFacts({text: text}, ((text, text),), ((text, 1.0),), (text,), ((text, 1),), Path(text))
    limits = LimitFacts((LimitLine(text, "latency_ms", 900.0),), {text: (text,)})
    rows = (row("plain", original=True), row(text))
    return ReportData(text, rows, {text: 8, "other": 4}, ("accuracy", text), limits, text, facts)


@pytest.fixture(autouse=True)
def _small_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "_plotly", lambda: "var Plotly;")


@pytest.mark.fault
@pytest.mark.parametrize("text", HOSTILE)
def test_64_the_page_holds_no_element_that_a_name_made(text: str) -> None:
    page = render(data_of(text))
    hostile, harmless = Elements(page), Elements(render(data_of("harmless")))
    assert hostile.tags == harmless.tags
    assert hostile.handlers == []
    assert not DANGER.search(page)
    page.encode("utf-8")  # lone surrogates cannot be written
    if not DANGER.search(text) and "\ud800" not in text:
        assert text in hostile.text


@pytest.mark.fault
@pytest.mark.parametrize("text", HOSTILE)
def test_64_names_travel_to_the_script_as_data(text: str) -> None:
    page = render(data_of(text))
    payload = re.search(r'<script type="application/json" id="payload">(.*?)</script>', page, re.DOTALL)
    assert payload is not None
    assert not set(payload[1]) & set("<>&'\u2028\u2029")
    assert json.loads(payload[1])["rows"][1]["name"] == html.clean(text, 120)


@pytest.mark.fault
@pytest.mark.parametrize("text", HOSTILE)
def test_64_the_terminal_is_given_no_command_and_no_markup(text: str) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200, color_system=None, legacy_windows=False)
    console.print(front_table(data_of(text).rows, text))
    if text.startswith("[red]"):
        assert "[red]x[/red][link=https://x]y" in out.getvalue().replace("\n", "")
    console.print(summary(data_of(text).rows, text))
    console.print(front_table([row(text)], text))
    with progress(Console(file=out)) as p, p.stage(text, 1) as stage:
        stage.advance(1, text)
    shown = re.sub("\x1b\\[[0-9;]*m", "", out.getvalue()).replace("\n", "")  # our own bold and dim
    assert not DANGER.search(shown)
    assert "\x1b[31m" not in out.getvalue()
