"""How far a network's outputs are from the original's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paretoprune import graph as graphs
from paretoprune.core.data import take
from paretoprune.core.graph import Example, Program
from paretoprune.core.outputs import main_output

KL_SAMPLES = 256


@dataclass(frozen=True)
class Outputs:
    """The original's outputs on calibration inputs, to compare others with."""

    tensors: Mapping[str, Tensor]
    inputs: tuple[Example, ...]
    outputs: tuple[Tensor, ...]

    @classmethod
    def of(cls, program: Program, batches: Iterable[Any]) -> Outputs:
        inputs = tuple(i for i, _ in take(batches, KL_SAMPLES))
        outputs = tuple(main_output(program.observe(i, {})) for i in inputs)
        return cls(graphs.tensors_of(program.module), inputs, outputs)

    def divergence(self, program: Program) -> float:
        """Mean KL divergence for class scores (samples, classes), else the relative squared error."""
        found = [main_output(program.observe(i, {})) for i in self.inputs]
        ours, theirs = torch.cat(found), torch.cat(self.outputs)
        if theirs.ndim == 2 and theirs.shape[1] > 1:
            p, q = torch.log_softmax(theirs.double(), 1), torch.log_softmax(ours.double(), 1)
            return float((p.exp() * (p - q)).sum(1).mean())
        return float((ours - theirs).double().square().sum() / theirs.double().square().sum().clamp_min(1e-12))
