"""Networks that compute as their quantized files will: fake quantization and training with it."""

from __future__ import annotations

from paretoprune.quantize.fakes import BinaryWeight, FakeActivation, FakeBias, FakeWeight
from paretoprune.quantize.insert import fakes_of, with_fakes
from paretoprune.quantize.match import matched

__all__ = ["BinaryWeight", "FakeActivation", "FakeBias", "FakeWeight", "fakes_of", "matched", "with_fakes"]
