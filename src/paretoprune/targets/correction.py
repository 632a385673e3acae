"""From what the layers of a network cost to what the network costs: fitted on whole networks, with its own error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_NETWORKS = 3
"""One number is fitted; the error needs networks that it was not fitted to."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Correction:
    """share = `layers` × share of the layers' cost + (1 - `layers`) × share of the numbers written; of the original's.

    What layers alone do not show grows with the numbers that pass between them: sums, pooling, layout changes. The
    original itself comes out as 1, as it is. `error`: median relative error on networks that were left out of the fit,
    one at a time; None where there were too few. `networks`: how many it was fitted to, beside the original.
    """

    layers: float = 1.0
    error: float | None = None
    networks: int = 0

    def share(self, layers: float, elements: float) -> float:
        return self.layers * layers + (1 - self.layers) * elements

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Correction:
        error = None if data["error"] is None else float(data["error"])
        return cls(float(data["layers"]), error, int(data["networks"]))


def fitted(layers: Sequence[float], elements: Sequence[float], measured: Sequence[float]) -> Correction:
    """Least squares of relative errors. Shares of narrower networks, one entry each.

    Nothing gets cheaper by being there: `layers` is between 0 and 1. Where narrower layers do not come out cheaper at
    all, their cost is left as it is, with its error.
    """
    x, e, y = (np.asarray(given, np.float64) for given in (layers, elements, measured))
    if len(y) < LEAST_NETWORKS:
        return Correction(networks=len(y))
    return Correction(_weight(x, e, y), _left_out(x, e, y), len(y))


def _weight(x: Floats, e: Floats, y: Floats) -> float:
    slope, rest = (x - e) / y, 1 - e / y
    if not (slope**2).sum() > 0:
        return 1.0
    found = float((slope * rest).sum() / (slope**2).sum())
    return min(found, 1.0) if found > 0 else 1.0


def _left_out(x: Floats, e: Floats, y: Floats) -> float:
    errors = []
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        weight = _weight(x[rest], e[rest], y[rest])
        errors.append(abs((weight * x[i] + (1 - weight) * e[i]) / y[i] - 1))
    return float(np.median(errors))
