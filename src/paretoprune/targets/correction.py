"""From what the layers of a network cost to what the network costs: fitted on whole networks, with its own error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

LEAST_NETWORKS = 3
"""Two numbers are fitted; the error needs networks that they were not fitted to."""
LEAST_SHARE = 0.01
"""No network is free, whatever a line says far from where it was fitted."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Correction:
    """share = 1 - `layers` × (1 - share of the layers' cost) - `elements` × (1 - share of the numbers written).

    All shares are of the original's, which itself comes out as 1, as it is. The first factor makes up for a table that
    is wrong throughout; what layers do not show at all (sums, pooling, layout changes) grows with the numbers that pass
    between them. `error`: median relative error on networks that were left out of the fit, one at a time; None where
    there were too few. `networks`: how many it was fitted to, beside the original.
    """

    layers: float = 1.0
    elements: float = 0.0
    error: float | None = None
    networks: int = 0

    def share(self, layers: float, elements: float) -> float:
        return max(LEAST_SHARE, 1 - self.layers * (1 - layers) - self.elements * (1 - elements))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Correction:
        """A folder of an earlier version has one factor, the other being what is missing to 1."""
        layers = float(data["layers"])
        error = None if data["error"] is None else float(data["error"])
        return cls(layers, float(data.get("elements", 1 - layers)), error, int(data["networks"]))


def fitted(layers: Sequence[float], elements: Sequence[float], measured: Sequence[float]) -> Correction:
    """Least squares of relative errors. Shares of narrower networks, one entry each.

    Nothing gets cheaper by being there: no factor is negative. Where narrower layers do not come out cheaper at all,
    their cost is left as it is, with its error.
    """
    x, e, y = (np.asarray(given, np.float64) for given in (layers, elements, measured))
    if len(y) < LEAST_NETWORKS:
        return Correction(networks=len(y))
    return Correction(*_factors(x, e, y), _left_out(x, e, y), len(y))


def _factors(x: Floats, e: Floats, y: Floats) -> tuple[float, float]:
    saved, _ = nnls(np.stack([(1 - x) / y, (1 - e) / y], axis=1), (1 - y) / y)
    return (float(saved[0]), float(saved[1])) if saved.any() else (1.0, 0.0)


def _left_out(x: Floats, e: Floats, y: Floats) -> float:
    errors = []
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        one = Correction(*_factors(x[rest], e[rest], y[rest]))
        errors.append(abs(one.share(x[i], e[i]) / y[i] - 1))
    return float(np.median(errors))
