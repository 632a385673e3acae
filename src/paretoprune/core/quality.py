"""How good a network's answers are, beside accuracy: the figures of the field. One literal table.

A figure is stored twice: under its key for the test set, which reports show, and under "validation_<key>", by which
limits and picks are judged.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from paretoprune.core.errors import UsageError

Source = Literal["answers", "loss", "train", "shifted"]


@dataclass(frozen=True)
class Quality:
    """`name` as in limits, `title` as in reports. `larger`: more is better.

    `source`: what it is computed from. "answers" and "loss" come with the pass that gives the accuracy, "train" needs
    a pass over training samples, "shifted" one over inputs that were disturbed or attacked.
    """

    key: str
    name: str
    unit: str
    larger: bool
    source: Source


def _robust(how: str) -> Quality:
    return Quality(f"robust_{how}", f"robust accuracy ({how})", "share", True, "shifted")


ATTACKS = ("fgsm", "pgd")
CORRUPTIONS = ("noise", "blur", "contrast")
SHIFTS = (*ATTACKS, *CORRUPTIONS)

QUALITIES: tuple[Quality, ...] = (
    Quality("macro_precision", "precision", "share", True, "answers"),
    Quality("macro_recall", "recall", "share", True, "answers"),
    Quality("macro_f1", "f1", "share", True, "answers"),
    Quality("loss", "loss", "loss", False, "loss"),
    Quality("recovery_ratio", "recovery ratio", "x", True, "loss"),
    Quality("calibration_error", "calibration error", "share", False, "answers"),
    Quality("generalisation_gap", "generalisation gap", "share", False, "train"),
    *(_robust(how) for how in SHIFTS),
)
KEYS = tuple(q.key for q in QUALITIES)
ALIASES: Mapping[str, str] = {
    "generalization gap": "generalisation gap",
    "f1 score": "f1",
    "ece": "calibration error",
    "expected calibration error": "calibration error",
}
_BY_KEY = {q.key: q for q in QUALITIES}
_BY_NAME = {q.name: q for q in QUALITIES}


def plain_name(name: str) -> str:
    """ "Robust_accuracy(FGSM)" as "robust accuracy (fgsm)": lower case, single blanks, the usual spelling."""
    words = " ".join(name.replace("_", " ").replace("(", " ( ").lower().split()).replace("( ", "(")
    words = words.replace(" )", ")")
    return ALIASES.get(words, words)


def quality_of(name: str) -> Quality:
    """A figure by its key or its name. Raises UsageError that lists them."""
    found = _BY_KEY.get(name) or (_BY_NAME.get(plain_name(name)) if isinstance(name, str) else None)
    if found is not None:
        return found
    near = difflib.get_close_matches(str(name).lower(), _BY_NAME, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"unknown metric {name!r}: there are {', '.join(_BY_NAME)}{hint}")


def validation_key(key: str) -> str:
    """Where the same figure of the search's validation set is stored."""
    return "validation" if key == "accuracy" else f"validation_{key}"


def judged_key(key: str, judge: str, *measured: Mapping[str, object]) -> str:
    """The key that a limit on `key` looks at: the validation set's where `judge` says so and everyone has it."""
    if key != "accuracy" and key not in _BY_KEY:
        return key
    other = validation_key(key)
    return other if judge == "validation" and all(other in one for one in measured) else key


def shifts(keys: Iterable[str]) -> tuple[str, ...]:
    """The disturbances among these figures, in the usual order."""
    wanted = set(keys)
    return tuple(how for how in SHIFTS if f"robust_{how}" in wanted)
