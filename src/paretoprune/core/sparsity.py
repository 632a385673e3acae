"""What a plan says of a weight's zeros: one short text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from paretoprune.core.errors import PlanError

CRITERIA = ("magnitude", "wanda", "sparsegpt")
REMOVED = ("zero", "clip", "mean")
_TEXT = re.compile(
    r"(?P<pattern>unstructured|\d+:\d+|\d+x\d+)(?:@(?P<share>[\d.]+(?:e-?\d+)?)|>(?P<threshold>[\d.]+(?:e-?\d+)?))?"
    rf"(?: (?P<criterion>{'|'.join(CRITERIA)}))?(?: (?P<removed>{'|'.join(REMOVED)}))?"
)


@dataclass(frozen=True)
class Zeros:
    """Written "16x1@0.8", 80 % of the blocks of 16 outputs by 1 input go; "2:4"; "4x1>0.02", blocks not above that go.

    Behind it, where they are not the usual ones: the criterion that chose and what became of what was removed, as in
    "16x1@0.8 wanda mean".
    """

    pattern: str
    share: float | None = None
    threshold: float | None = None
    criterion: str = CRITERIA[0]
    removed: str = REMOVED[0]

    def __str__(self) -> str:
        amount = "" if self.share is None else f"@{self.share!r}"
        amount += "" if self.threshold is None else f">{self.threshold!r}"
        more = [w for w, usual in ((self.criterion, CRITERIA[0]), (self.removed, REMOVED[0])) if w != usual]
        return " ".join([self.pattern + amount, *more])

    @classmethod
    def parse(cls, text: str) -> Zeros:
        """Raises PlanError for anything else."""
        found = _TEXT.fullmatch(text)
        share, threshold = (None if found is None or found[k] is None else _number(found[k]) for k in _AMOUNTS)
        own = found is not None and ":" in found["pattern"]
        if found is None or (share is None and threshold is None and not own) or (share is not None and own):
            raise PlanError(
                f"zeros {text!r}: expected a pattern and its share or threshold: '16x1@0.8', '4x1>0.02', '2:4'"
            )
        if share is not None and not share <= 1:
            raise PlanError(f"zeros {text!r}: the share that goes must be from 0 to 1")
        words = found["criterion"] or CRITERIA[0], found["removed"] or REMOVED[0]
        return cls(found["pattern"], share, threshold, *words)


def told(sparsity: Mapping[str, str], most: int = 4) -> list[str]:
    """For people: "zeros 16x1@0.8 in 6 weights: a, b, c, d and 2 more", the commonest first."""
    by_text: dict[str, list[str]] = {}
    for name, text in sparsity.items():
        by_text.setdefault(text, []).append(name)
    said = []
    for text, names in sorted(by_text.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        more = f" and {len(names) - most} more" if len(names) > most else ""
        count = f"{len(names)} weights" if len(names) > 1 else "one weight"
        said.append(f"zeros {text} in {count}: {', '.join(names[:most])}{more}")
    return said


_AMOUNTS = ("share", "threshold")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.inf
