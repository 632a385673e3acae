"""Bars on a terminal, plain lines elsewhere, nothing with the null object."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from paretoprune.core.progress import NoProgress, Progress
from paretoprune.report.progress import PlainProgress, progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_away_from_a_terminal_a_stage_is_one_line() -> None:
    out = io.StringIO()
    with progress(Console(file=out)) as p, p.stage("measure\x1b[2J", 3) as stage:
        stage.advance(2, "m01")
        stage.advance()
    assert out.getvalue() == "measure\\x1b[2J: done, 3 of 3 in under 10 ms\n"


def test_a_long_stage_is_heard_of_every_half_minute() -> None:
    out, clock = io.StringIO(), Clock()
    with PlainProgress(out, clock).stage("recover", None) as stage:
        for _ in range(70):
            clock.now += 1
            stage.advance(note="step")
    assert out.getvalue().splitlines() == [
        "recover: 30 in 30.0 s: step",
        "recover: 60 in 1 min 00 s: step",
        "recover: done, 70 in 1 min 10 s",
    ]


def test_a_stage_that_fails_says_how_far_it_came_and_lets_the_error_through() -> None:
    out = io.StringIO()

    def interrupted() -> None:
        with PlainProgress(out, Clock()).stage("search", 9) as stage:
            stage.advance(4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert out.getvalue() == "search: stopped after 4 of 9 in under 10 ms\n"


def test_a_terminal_gets_bars_with_counts_and_names_as_text() -> None:
    out = io.StringIO()
    with progress(Console(file=out, force_terminal=True, width=100)) as p:
        with p.stage("score [red]", 2) as outer:
            outer.advance(1, "axis \x1b]0;title\x07")
            with p.stage("inner", None) as inner:
                inner.advance()
            outer.advance()
        with pytest.raises(ValueError, match="no"), p.stage("broken", 5):
            raise ValueError("no")
    text = out.getvalue()
    assert "score [red]" in text
    assert "2/2" in text
    assert "stopped" in text
    assert "\x1b]0;" not in text
    assert "\x07" not in text


def test_the_null_object_takes_everything() -> None:
    nothing: Progress = NoProgress()
    with nothing.stage("a", None) as stage:
        stage.advance(3, "note")
