"""What an explanation says, and that it says so where something is not known."""

from __future__ import annotations

import json

import pytest

from paretoprune.core.sparsity import told
from paretoprune.core.why import MOST_AXES, AxisWhy, ClassWhy, Why


def axis(
    name: str = "conv1", kept: int = 8, curve: tuple[tuple[int, float], ...] = ((4, 0.5), (8, 0.1), (16, 0.0))
) -> AxisWhy:
    return AxisWhy(name, kept, 16, 1200, 50_000, curve)


WHY = Why(
    "c01-int8",
    "int8",
    False,
    (7_000, 10_000),
    (50_000, 200_000),
    (axis(),),
    2,
    ("block3",),
    (ClassWhy(3, 40, 38, 30, (8, 1, 7)), ClassWhy(5, 50, 50, 49)),
    "reconstructed, 20 steps of distillation",
    ("a note",),
)


def test_the_text_says_what_was_cut_what_it_cost_and_what_helped() -> None:
    text = str(WHY)
    for words in (
        "c01-int8 (int8): 1 of 3 axes were cut; 30 % of the parameters went (3,000 of 10,000), 75 % of the MACs went",
        "conv1  8 of 16  1,200            50,000     0.1",
        "blocks dropped: block3",
        "3      38 of 40      30 of 40   −20.0 points  taken for 8: 7, before 1",
        "5      50 of 50      49 of 50   −2.0 points",
        "Recovery: reconstructed, 20 steps of distillation",
        "note: a note",
    ):
        assert words in text, words


def test_json_holds_the_same_and_what_follows_from_it() -> None:
    data = json.loads(json.dumps(WHY.to_json(), allow_nan=False))
    assert data["axes"][0]["damage"] == 0.1
    assert data["axes"][0]["curve"] == [[4, 0.5], [8, 0.1], [16, 0.0]]
    assert data["classes"][0]["recall_lost"] == pytest.approx(0.2)
    assert data["macs"] == [50_000, 200_000]


def test_the_damage_between_two_widths_is_between_theirs_and_beyond_them_unknown() -> None:
    assert axis(kept=6).damage == pytest.approx(0.3)
    assert axis(kept=2).damage is None
    assert axis(curve=()).damage is None


def test_what_is_not_known_is_said_and_is_no_zero() -> None:
    bare = AxisWhy("conv1", 8, None, None, None)
    why = Why("c01", "fp32", False, None, None, (bare,), 0, (), (), "", unknown=("the classes: no labels",))
    text = str(why)
    assert "8 of unknown  unknown          unknown    unknown" in text
    assert text.endswith("Not known: the classes: no labels")
    assert "Which classes" not in text


def test_what_was_not_cut_is_said_in_one_line() -> None:
    same = Why("original", "fp32", True, None, None, (), 3, (), (), "")
    assert str(same) == "original: the original, nothing was cut"
    assert str(Why("original-int8", "int8", False, None, None, (), 3, (), (), "")).startswith(
        "original-int8: the original in int8"
    )


def test_a_long_table_is_cut_and_counted() -> None:
    many = tuple(axis(f"a{i}") for i in range(MOST_AXES + 5))
    text = str(Why("c", "fp32", False, None, None, many, 0, (), (), ""))
    assert "and 5 more (in the JSON)" in text
    assert f"a{MOST_AXES}" not in text


def test_zeros_and_blocks_are_told_where_no_axis_was_cut() -> None:
    zeros = told({f"{n}.weight": "16x1@0.8" for n in "abcdef"} | {"head.weight": "2:4"})
    assert zeros == [
        "zeros 16x1@0.8 in 6 weights: a.weight, b.weight, c.weight, d.weight and 2 more",
        "zeros 2:4 in one weight: head.weight",
    ]
    why = Why("c01", "fp32", False, None, None, (), 3, ("layer1.0",), (), "", zeros=tuple(zeros))
    assert why.headline == "c01 (fp32): 0 of 3 axes were cut"
    assert "  blocks dropped: layer1.0" in str(why).splitlines()
    assert f"  {zeros[0]}" in str(why).splitlines()
