"""Conformance suites that a plug-in's own tests inherit.

    class TestMine(SearcherCase):
        def make(self, choices, **settings):
            return Mine(choices, **settings)

Each suite is imported when it is asked for, so that one does not cost the imports of another.
"""

from __future__ import annotations

import importlib
from typing import Any

_SUITES = {
    "CriterionCase": "paretoprune.testing.criterion",
    "MeterCase": "paretoprune.testing.meter",
    "RecordedMeter": "paretoprune.testing.meter",
    "SearcherCase": "paretoprune.testing.searcher",
    "TargetCase": "paretoprune.testing.target",
}

__all__ = ["CriterionCase", "MeterCase", "RecordedMeter", "SearcherCase", "TargetCase"]


def __getattr__(name: str) -> Any:
    if name not in _SUITES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are {', '.join(_SUITES)}")
    return getattr(importlib.import_module(_SUITES[name]), name)
