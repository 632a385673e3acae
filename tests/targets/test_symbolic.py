"""Operators that torch's exporter does not know by itself. `pp.export` compares the file with the network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import paretoprune as pp


class Steps(nn.Module):
    """How far neighbours are apart, twice over, with a neighbour at each end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.diff(x, n=2, dim=1, prepend=x[:, :1] - 1, append=x[:, -1:]) + torch.diff(x, dim=-1).sum()


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 3)), torch.randn(2, 5, 6)),
        (nn.Sequential(nn.Linear(6, 8), nn.RMSNorm((5, 8), eps=1e-3), nn.Linear(8, 3)), torch.randn(2, 5, 6)),
        (nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8, elementwise_affine=False)), torch.randn(2, 6)),
        (nn.Sequential(nn.Conv2d(3, 12, 3), nn.ChannelShuffle(3), nn.Conv2d(12, 4, 3)), torch.randn(2, 3, 8, 9)),
        (nn.Sequential(nn.Linear(6, 8), Steps()), torch.randn(2, 5, 6)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8)),
    ],
    ids=["rms norm", "rms norm of two dims", "rms norm without weight", "channel shuffle", "diff", "transformer layer"],
)
def test_exported_and_compared(model: nn.Module, example: torch.Tensor, tmp_path: Path) -> None:
    fast = torch.backends.mha.get_fastpath_enabled()
    file = pp.export(model.eval(), example, tmp_path / "model.onnx")
    assert file.stat().st_size > 0
    assert torch.backends.mha.get_fastpath_enabled() is fast
