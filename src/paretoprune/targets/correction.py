"""From what the layers of a network cost to what the network costs: fitted on whole networks, with its own error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_NETWORKS = 4
"""Two numbers are fitted; the error needs networks that they were not fitted to."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Correction:
    """share = `layers` × share of the layers' cost + `elements` × share of the numbers written; all of the original's.

    What layers alone do not show grows with the numbers that pass between them: sums, pooling, layout changes. `error`:
    median relative error on networks that were left out of the fit, one at a time; None where there were too few.
    `networks`: how many it was fitted to.
    """

    layers: float = 1.0
    elements: float = 0.0
    error: float | None = None
    networks: int = 0

    def share(self, layers: float, elements: float) -> float:
        return self.layers * layers + self.elements * elements

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Correction:
        error = None if data["error"] is None else float(data["error"])
        return cls(float(data["layers"]), float(data["elements"]), error, int(data["networks"]))


def fitted(layers: Sequence[float], elements: Sequence[float], measured: Sequence[float]) -> Correction:
    """Least squares of relative errors; neither factor is below zero, for nothing gets cheaper by being there.

    Where fewer numbers and narrower layers do not come out cheaper, the layers' cost is left as it is, with its error.
    """
    x = np.stack([np.asarray(layers, np.float64), np.asarray(elements, np.float64)], axis=1)
    y = np.asarray(measured, np.float64)
    if len(y) < LEAST_NETWORKS:
        return Correction(networks=len(y))
    found = _factors(x, y)
    return Correction(float(found[0]), float(found[1]), _left_out(x, y), len(y))


def _factors(x: Floats, y: Floats) -> Floats:
    from scipy.optimize import nnls

    found, _ = nnls(x / y[:, None], np.ones_like(y))
    return np.asarray(found, np.float64) if found[0] > 0 else np.array([1.0, 0.0])


def _left_out(x: Floats, y: Floats) -> float:
    others = [np.arange(len(y)) != i for i in range(len(y))]
    guesses = np.array([x[i] @ _factors(x[rest], y[rest]) for i, rest in enumerate(others)])
    return float(np.median(np.abs(guesses / y - 1)))
