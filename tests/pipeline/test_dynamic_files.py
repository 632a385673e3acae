"""Dimensions beside the batch that stay open in a file: the length of a sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.core.errors import DataError, ExportMismatchError
from paretoprune.pipeline.targets import find_target


class Tagger(nn.Module):
    """A class for every word."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.wide, self.back = nn.Embedding(30, 16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        x = x + self.back(self.wide(x).relu())
        found: Tensor = self.head(torch.softmax(x @ x.transpose(1, 2), -1) @ x)
        return found


class Fixed(nn.Module):
    """Knows its length by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(30, 16), nn.Linear(16 * 7, 5)

    def forward(self, words: Tensor) -> Tensor:
        found: Tensor = self.head(self.embed(words).flatten(1))
        return found


WORDS = torch.randint(0, 30, (2, 7), generator=torch.Generator().manual_seed(1))
LENGTH = {"input": [1]}


@pytest.mark.parametrize("target", ["onnxruntime", "torch"])
@pytest.mark.parametrize("pruned", [False, True])
def test_other_lengths_run_in_the_file(tmp_path: Path, target: str, pruned: bool) -> None:
    torch.manual_seed(0)
    model: Any = Tagger().eval()
    if pruned:
        model = pp.prune(model, WORDS, ratio=0.5, dynamic=LENGTH)
    file = pp.export(
        model, WORDS, tmp_path / f"a{'.onnx' if target != 'torch' else '.safetensors'}", target, dynamic=LENGTH
    )
    runner, module = find_target(target).load(file), model.model if pruned else model
    for shape in ((1, 3), (4, 19)):
        words = torch.randint(0, 30, shape)
        (answer,) = runner({"input": words.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(answer, module(words).numpy(), atol=1e-5)


def test_int8_keeps_them_open(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [torch.randint(0, 30, (8, n)) for n in (5, 9)]
    file = pp.export(
        Tagger().eval(), WORDS, tmp_path / "a.onnx", precision="int8-dynamic", check=batches, dynamic=LENGTH
    )
    (answer,) = find_target("onnxruntime").load(file)({"input": np.zeros((1, 12), np.int64)})
    assert answer.shape == (1, 12, 5)


def test_tokens_of_a_module_are_timed_once_its_length_is_open(tmp_path: Path) -> None:
    named = {"input_ids": WORDS}
    file = pp.export(Tagger().eval(), named, tmp_path / "a.onnx", dynamic={"input_ids": [1]})
    found = pp.measure(file, tokens=(4, 3))
    assert found["first_token_ms"].value > 0


def test_a_length_that_became_a_constant_is_refused(tmp_path: Path) -> None:
    with pytest.raises((ExportMismatchError, RuntimeError), match=r"example's sizes|shapes cannot be multiplied"):
        pp.export(Fixed().eval(), WORDS, tmp_path / "a.onnx", dynamic=LENGTH)
    assert not (tmp_path / "a.onnx").exists()


def test_names_and_numbers_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dynamic names 'words', but the inputs are input"):
        pp.export(Tagger().eval(), WORDS, tmp_path / "a.onnx", dynamic={"words": [1]})
    with pytest.raises(DataError, match="dimension 2 of 'input', which has 2"):
        pp.export(Tagger().eval(), WORDS, tmp_path / "a.onnx", dynamic={"input": [2]})
