"""A plan: which positions of which axes stay, and which blocks go. Pure data, replayable on a fresh checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paretoprune.core.errors import FileError, PlanError

PLAN_SCHEMA = 2


@dataclass(frozen=True)
class Plan:
    """Kept positions by axis id (sorted); an axis that is not named keeps everything.

    `blocks`: names (or patterns) of the residual blocks that go. What is kept of an axis that stands in them alone has
    no effect.
    `graph` is the fingerprint of the graph that the plan was made for; empty for a plan written by hand.
    """

    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    graph: str = ""
    blocks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": PLAN_SCHEMA,
            "graph": self.graph,
            "kept": {axis: list(kept) for axis, kept in sorted(self.kept.items())},
            "blocks": list(self.blocks),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_json` wrote, or an earlier version (schema 1 knew no blocks).

        Raises FileError for a newer schema, PlanError for anything malformed.
        """
        schema = data.get("schema")
        if not isinstance(schema, int):
            raise PlanError(f"not a plan: 'schema' is {schema!r}; expected the integer {PLAN_SCHEMA}")
        if schema > PLAN_SCHEMA:
            raise FileError(
                f"the plan has schema {schema}, this version reads up to {PLAN_SCHEMA}: upgrade paretoprune"
            )
        kept = data.get("kept")
        if not isinstance(kept, Mapping):
            raise PlanError("not a plan: 'kept' must be an object of axis id to kept positions")
        for axis, positions in kept.items():
            if not isinstance(positions, list) or not all(type(p) is int for p in positions):
                raise PlanError(f"plan: kept positions of axis {axis!r} must be a list of integers")
        blocks = data.get("blocks", [])
        if not isinstance(blocks, list) or not all(isinstance(b, str) for b in blocks):
            raise PlanError(f"plan: 'blocks' is {str(blocks)[:80]}; it must be a list of names of residual blocks")
        axes = {str(a): tuple(sorted(set(p))) for a, p in kept.items()}
        return cls(axes, str(data.get("graph", "")), tuple(dict.fromkeys(blocks)))

    def dumps(self) -> str:
        return json.dumps(self.to_json(), indent=1)
