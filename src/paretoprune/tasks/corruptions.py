"""Inputs as a worse sensor would give them: noise, blur, lost contrast. Hendrycks and Dietterich (ICLR 2019)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from paretoprune.core.graph import Example
from paretoprune.tasks.one_input import disturbable, image, replaced

NOISE = 0.08
"""Standard deviation, as a share of the input's range: the lightest of the paper's five severities."""
BLUR = 1.0
"""Standard deviation of the Gaussian, in pixels."""
CONTRAST = 0.4
"""Share of the distance to the image's own mean that is left."""


@dataclass(frozen=True)
class Sensor:
    """[`low`, `high`]: the range of the input, which noise is cut to."""

    low: float
    high: float
    made: torch.Generator


def noise(sensor: Sensor, inputs: Example) -> Example:
    """Independent Gaussian noise on every entry."""
    clean = disturbable(inputs, "noise")
    drawn = torch.randn(clean.shape, generator=sensor.made, dtype=torch.float32).to(clean)
    moved = clean + NOISE * (sensor.high - sensor.low) * drawn
    return replaced(inputs, moved.clamp(sensor.low, sensor.high))


def blur(sensor: Sensor, inputs: Example) -> Example:
    """Gaussian blur of every channel, edges repeated."""
    del sensor
    pixels = image(inputs, "blur")
    return replaced(inputs, _blurred(_blurred(pixels, 2), 3))


def _blurred(pixels: Tensor, dim: int) -> Tensor:
    """Along one of the dimensions 2 and 3."""
    reach = math.ceil(3 * BLUR)
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (at / BLUR) ** 2)
    kernel = (weights / weights.sum()).to(pixels)
    shape, pad = ([1, 1, -1, 1], [0, 0, reach, reach]) if dim == 2 else ([1, 1, 1, -1], [reach, reach, 0, 0])
    flat = pixels.reshape(-1, 1, *pixels.shape[2:])
    padded = functional.pad(flat, pad, mode="replicate")
    return functional.conv2d(padded, kernel.reshape(shape)).reshape(pixels.shape)


def contrast(sensor: Sensor, inputs: Example) -> Example:
    """Every image drawn towards its own mean."""
    del sensor
    pixels = image(inputs, "contrast")
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return replaced(inputs, mean + CONTRAST * (pixels - mean))


CORRUPTIONS: dict[str, Callable[[Sensor, Example], Example]] = {"noise": noise, "blur": blur, "contrast": contrast}
SAID = {
    "noise": f"Gaussian noise, standard deviation {NOISE:g} of the input's range",
    "blur": f"Gaussian blur, standard deviation {BLUR:g} pixel",
    "contrast": f"contrast brought down to {CONTRAST:g}",
}
