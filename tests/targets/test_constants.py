"""What a captured graph computes from constants is in the file as a constant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import paretoprune as pp
from paretoprune.core.graph import Example
from paretoprune.targets.constants import PREFIX, with_constants


class Masked(nn.Module):
    """A mask that is written slice by slice, as shifted windows have it; `late`: it is read in between."""

    def __init__(self, *, late: bool = False, by_input: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.late, self.by_input = late, by_input
        self.register_buffer("scale", torch.full((4,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = x.new_zeros((4,))
        mask[:2] = 1
        before = mask * 1 if self.late else self.scale
        mask[1:3] = x.mean() if self.by_input else -2
        y = torch.relu(self.first(x))
        return self.second(y) * (mask + before).sum() + (mask * before)[:3]


X = torch.randn(2, 6)


@pytest.mark.parametrize("late", [False, True])
def test_what_is_written_into_a_constant_is_in_the_file(late: bool, tmp_path: Path) -> None:
    model = Masked(late=late).eval()
    module = pp.trace(model, X).program.module
    folded = with_constants(module, Example.of(X))
    assert not any("fill_" in n.name or "copy_" in n.name for n in folded.graph.nodes)  # type: ignore[union-attr]
    assert any(n.startswith(PREFIX) for n, _ in folded.named_buffers())
    assert not any(n.startswith(PREFIX) for n, _ in module.named_buffers())
    other = torch.randn(5, 6)
    for _ in range(2):  # nothing is written into what was folded
        torch.testing.assert_close(folded(other), model(other))
    assert folded(other).shape == (5, 3)
    pp.export(module, X, tmp_path / "masked.onnx")


class Silenced(nn.Module):
    """A part of the bias is set to zero in a copy, as Swin V2 has it for its keys."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.up.bias.clone()
        bias[3:6].zero_()
        return self.down(torch.relu(nn.functional.linear(x, self.up.weight, bias)))


def test_what_is_written_into_a_copy_of_a_parameter_is_in_the_file(tmp_path: Path) -> None:
    model = Silenced().eval()
    module = pp.trace(model, X).program.module
    folded = with_constants(module, Example.of(X))
    torch.testing.assert_close(folded(X), model(X))
    assert "up.weight" in dict(folded.named_parameters()), "what nobody wrote into keeps its name"
    assert not torch.equal(model.up.bias[3:6], torch.zeros(3))
    pp.export(module, X, tmp_path / "silenced.onnx")


def test_what_the_input_writes_is_left_alone() -> None:
    module = pp.trace(Masked(by_input=True).eval(), X).program.module
    assert with_constants(module, Example.of(X)) is module


def test_other_networks_are_left_alone() -> None:
    model = nn.Linear(6, 2)
    assert with_constants(model, Example.of(X)) is model
