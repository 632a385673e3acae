"""What a network would cost at other widths: a table of layers, corrected on whole networks that were measured.

It is used to choose what is worth carrying out. What was carried out is measured; no figure of this is ever reported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from paretoprune import graph as graphs
from paretoprune.core.errors import PruneError, StoreError, TargetError
from paretoprune.core.front import metric_key
from paretoprune.core.layers import LayerSpec
from paretoprune.core.measurement import Measurement
from paretoprune.graph import TracedGraph
from paretoprune.pipeline import artefact, choose
from paretoprune.pipeline.levels import Levels, Meaning
from paretoprune.pipeline.study import Study
from paretoprune.targets import CostTable, measure_file
from paretoprune.targets.correction import LEAST_NETWORKS, Correction, fitted
from paretoprune.targets.feeds import feed_of

LEVELS = (0.25, 0.5, 0.75)
"""Between the cheapest network and the original, where the others that it is fitted to lie."""
WORTH = 3
"""Candidates for each of them: a search for a few networks does without, it would cost as much as they do."""
INT8_SAMPLES = 16
"""Calibration samples of their int8 files, which are timed and not judged."""
STAGE, KEY = "cost model", "fit"
LATENCY, ENERGY = "latency_ms", "energy_mj"

Widths = Mapping[str, int]
Choices = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class CostModel:
    """Shares of the original's cost. `corrections` by metric and precision; `metric`: what is searched for."""

    traced: TracedGraph
    table: CostTable
    precisions: tuple[str, ...]
    corrections: Mapping[str, Mapping[str, Correction]]
    metric: str = LATENCY
    levels: Levels = field(default_factory=Levels)

    def share(self, widths: Widths) -> float:
        """Mean over the precisions: steps and savings differ, and what is exported in both should pay in both."""
        found = [self.share_in(precision, widths) for precision in self.precisions]
        return float(np.mean([s for s in found if s is not None]))

    def share_in(self, precision: str, widths: Widths) -> float | None:
        """None where the target cannot run a layer alone in this precision: then fp32 decides."""
        chosen = self.levels.meaning(widths)
        try:
            layers = self._layers(chosen, precision) / self._layers(Meaning({}, {}, ()), precision)
        except TargetError:
            if precision == "fp32":
                raise
            return None
        correction = self.corrections.get(self.metric, {}).get(precision, Correction())
        return correction.share(layers, elements_share(self.traced, chosen.widths, chosen.blocks))

    def _layers(self, chosen: Meaning, precision: str) -> float:
        specs = self.traced.layers(chosen.widths, chosen.blocks)
        pairs = zip(specs, self.traced.layer_weights(chosen.blocks), strict=True)
        return sum(self._cost_ms(spec, precision, chosen.zeros.get(weight, "")) for spec, weight in pairs)

    def _cost_ms(self, spec: LayerSpec, precision: str, zeros: str) -> float:
        """A layer that is no faster for its zeros is left dense."""
        dense = self.table.cost_ms(spec, precision)
        if not zeros:
            return dense
        try:
            return min(dense, self.table.cost_ms(replace(spec, zeros=zeros), precision))
        except TargetError:  # a layer that the kernels do not take
            return dense


def elements_share(traced: TracedGraph, widths: Widths, blocks: Sequence[str] = ()) -> float:
    return traced.elements(widths, blocks) / traced.elements()


def of(
    study: Study, table: CostTable, widths: Choices, order: Mapping[str, Sequence[int]], levels: Levels | None = None
) -> CostModel:
    """The table of layers with what was fitted; measured once for a run folder."""
    metrics = [metric_key(name) for name in study.settings.objectives]
    metric = ENERGY if ENERGY in metrics and LATENCY not in metrics else LATENCY
    plain = CostModel(study.traced, table, study.settings.precisions, {}, metric, levels or Levels())
    if study.folder.has("cost table", "layers") and not study.folder.has(STAGE, KEY):
        return plain  # a folder of an earlier version goes on as it began
    found = study.once(STAGE, KEY, lambda: _fit(study, plain, widths, order))
    read = {m: {p: Correction.from_json(c) for p, c in by.items()} for m, by in found["corrections"].items()}
    return replace(plain, corrections=read)


def _fit(study: Study, plain: CostModel, widths: Choices, order: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    networks = len(LEVELS) + 1
    if networks < LEAST_NETWORKS or study.settings.candidates < WORTH * networks:
        return {"corrections": {}, "points": []}
    points = [*_points(study, plain, widths, order)]
    corrections: dict[str, dict[str, Any]] = {LATENCY: {}, ENERGY: {}}
    for metric, by_precision in corrections.items():
        for precision in study.settings.precisions:
            rows = [p for p in points if p["precision"] == precision and metric in p]
            columns = [[float(p[key]) for p in rows] for key in ("layers", "elements", metric)]
            by_precision[precision] = fitted(*columns).to_json()
    return {"corrections": corrections, "points": points}


def _points(
    study: Study, plain: CostModel, widths: Choices, order: Mapping[str, Sequence[int]]
) -> Iterator[dict[str, Any]]:
    """Predicted and measured shares, one row for each network and precision; what cannot be exported is left out."""
    networks = members(widths, study.settings.seed)
    with study.progress.stage(STAGE, len(networks)) as bar, tempfile.TemporaryDirectory(prefix="paretoprune-") as place:
        for number, chosen in enumerate(networks):
            module = graphs.cut(study.traced, choose.plan_of(study.traced, chosen, order)).program.module
            for precision in study.settings.precisions:
                original = _original(study, precision)
                layers = plain.share_in(precision, chosen)
                if original is None or layers is None:
                    continue
                name = f"{STAGE} {number}-{precision}"
                file = Path(place) / f"{number}-{precision}{original.suffix}"
                try:
                    artefact.export(study, name, module, file, precision, samples=INT8_SAMPLES)
                    taken = _measured(study, file, original)
                except StoreError:
                    raise
                except PruneError as error:
                    study.folder.record("left out", name, {"cause": str(error)}, replace=True)
                    continue
                elements = elements_share(study.traced, chosen)
                yield {"widths": chosen, "precision": precision, "layers": layers, "elements": elements, **taken}
            bar.advance(note=f"network {number + 1}")


def members(widths: Choices, seed: int) -> list[dict[str, int]]:
    """The cheapest network, and some of random widths between it and the original."""
    rng = np.random.default_rng(seed)
    return [
        {axis: every[0] for axis, every in widths.items()},
        *({axis: random_width(rng, every, level) for axis, every in widths.items()} for level in LEVELS),
    ]


def random_width(rng: np.random.Generator, every: Sequence[int], level: float) -> int:
    """`level`: mean place among `every`, from 0 for the narrowest to 1."""
    return every[int(rng.binomial(len(every) - 1, level))]


def _original(study: Study, precision: str) -> Path | None:
    record = study.folder.done("candidate", "original" if precision == "fp32" else f"original-{precision}")
    return None if record is None else study.folder.artefact(record["file"])


def _measured(study: Study, file: Path, original: Path) -> dict[str, float]:
    """Shares of the original in the same precision. An estimated energy goes by the time, and so its share."""
    found = measure_file(study.target, file, feed_of(study.one), original, timing=artefact.timing(study.target))
    share = 1 / found["speedup"].value
    energy, whole = found.get(ENERGY), _energy_of(study, original)
    if energy is None or whole is None or energy.status != "measured":
        return {LATENCY: share, ENERGY: share}
    return {LATENCY: share, ENERGY: energy.value / whole.value}


def _energy_of(study: Study, original: Path) -> Measurement | None:
    for record in study.folder.all("candidate").values():
        if study.folder.artefact(record["file"]) == original and ENERGY in record["measurements"]:
            return Measurement.from_json(record["measurements"][ENERGY])
    return None


def told(found: Mapping[str, Any] | None) -> list[str]:
    """A sentence for each precision of what was journaled."""
    said = []
    for precision, given in ((found or {}).get("corrections", {}).get(LATENCY, {})).items():
        c = Correction.from_json(given)
        if c.error is not None:
            said.append(
                f"cost model ({precision}): median error {c.error:.1%} on {c.networks} networks, "
                "each left out of the fit once; used to choose, never shown as a result"
            )
    return said
