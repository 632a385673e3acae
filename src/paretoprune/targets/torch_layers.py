"""Layers as modules, to learn what one costs on a target whose files are not ONNX."""

from __future__ import annotations

import torch
from torch import nn

from paretoprune.core.layers import LayerSpec

_CONVOLUTIONS = {
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "conv_transpose": (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
}


class Copies(nn.Module):
    """So many layers of one shape on one input, their results added; see `layers.layer_model`."""

    def __init__(self, spec: LayerSpec, copies: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.layers = nn.ModuleList(_layer(spec) for _ in range(copies))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self.layers
        total: torch.Tensor = first(x)
        for layer in others:
            total = total + layer(x)
        return total


def _layer(spec: LayerSpec) -> nn.Module:
    if spec.kind == "linear":
        return nn.Linear(spec.inputs, spec.outputs)
    made: nn.Module = _CONVOLUTIONS[spec.kind][len(spec.kernel) - 1](
        spec.inputs,
        spec.outputs,
        spec.kernel,
        stride=spec.stride,
        padding=spec.padding,
        dilation=spec.dilation,
        groups=spec.groups,
    )
    return made
