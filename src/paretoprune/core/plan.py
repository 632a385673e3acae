"""A plan: which positions of which axes stay, which blocks go, which weights become two thin ones, in how many bits,
and where weights are zero.

Pure data, replayable on a fresh checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paretoprune.core.errors import FileError, PlanError
from paretoprune.core.sparsity import Zeros

PLAN_SCHEMA = 5
CHEAPER = ("relu", "hardswish", "hardsigmoid", "hardtanh")
"""Activations that may take the place of others."""


@dataclass(frozen=True)
class Plan:
    """Kept positions by axis id (sorted); an axis that is not named keeps everything.

    `blocks`: names (or patterns) of the residual blocks that go. What is kept of an axis that stands in them alone has
    no effect.
    `ranks`: by weight name, how many channels stand between the two thin layers that take a layer's place. What is cut
    is cut first. `spatial`: those of them whose kernel is divided, k × 1 and then 1 × k; else k × k and then 1 × 1.
    `bits`: by weight name or pattern, the precision that differs from the file's, e.g. {"head.weight": "fp32"} in an
    int8 file; the first pattern that fits counts. `activations`: by name (or pattern) of an activation's node, the
    cheaper one that takes its place, e.g. {"*": "relu"}. `cleanup`: the passes that an exported ONNX file of it goes
    through ("constants", "batch norms", "unread"); None for all of them.
    `sparsity`: by weight name or pattern, where what was cut holds zeros, as core.sparsity.Zeros writes it, e.g.
    {"layer1.*": "16x1@0.8", "fc.weight": "2:4"}; the first pattern that fits counts.
    `graph` is the fingerprint of the graph that the plan was made for; empty for a plan written by hand.
    """

    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    graph: str = ""
    blocks: tuple[str, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    spatial: tuple[str, ...] = ()
    bits: Mapping[str, str] = field(default_factory=dict)
    activations: Mapping[str, str] = field(default_factory=dict)
    cleanup: tuple[str, ...] | None = None
    sparsity: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": PLAN_SCHEMA,
            "graph": self.graph,
            "kept": {axis: list(kept) for axis, kept in sorted(self.kept.items())},
            "blocks": list(self.blocks),
            "ranks": dict(sorted(self.ranks.items())),
            "spatial": sorted(self.spatial),
            "bits": dict(self.bits),
            "activations": dict(self.activations),
            "cleanup": None if self.cleanup is None else list(self.cleanup),
            "sparsity": dict(self.sparsity),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_json` wrote, or an earlier version (schema 1 knew no blocks, 2 no ranks, 3 no bits, 4 no
        sparsity).

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
        ranks = data.get("ranks", {})
        if not isinstance(ranks, Mapping) or not all(isinstance(w, str) and type(r) is int for w, r in ranks.items()):
            raise PlanError(f"plan: 'ranks' is {str(ranks)[:80]}; it must be an object of weight name to rank")
        spatial = data.get("spatial", [])
        if not isinstance(spatial, list) or not all(isinstance(w, str) and w in ranks for w in spatial):
            raise PlanError(f"plan: 'spatial' is {str(spatial)[:80]}; it must be a list of weights that 'ranks' names")
        bits, activations, sparsity = (_texts(key, data.get(key, {})) for key in ("bits", "activations", "sparsity"))
        for text in sparsity.values():
            Zeros.parse(text)
        cleanup = data.get("cleanup")
        if cleanup is not None and not (isinstance(cleanup, list) and all(isinstance(p, str) for p in cleanup)):
            raise PlanError(f"plan: 'cleanup' is {str(cleanup)[:80]}; it must be a list of passes, or null for all")
        passes = None if cleanup is None else tuple(cleanup)
        axes = {str(a): tuple(sorted(set(p))) for a, p in kept.items()}
        thin = dict(ranks), tuple(sorted(set(spatial)))
        gone = tuple(dict.fromkeys(blocks))
        return cls(axes, str(data.get("graph", "")), gone, *thin, bits, activations, passes, sparsity)

    def dumps(self) -> str:
        return json.dumps(self.to_json(), indent=1)


def _texts(key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise PlanError(f"plan: {key!r} is {str(value)[:80]}; it must be an object of name to name")
    return dict(value)
