"""2:4 weights for the GPU's sparse units: which are taken, tried on the CPU with a packing of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from paretoprune.core.graph import Example
from paretoprune.pipeline.targets import GraphFiles, find_target
from paretoprune.sparsity import mask_of, pattern_of
from paretoprune.targets.cuda import Cuda
from paretoprune.targets.semi_structured import compress, linear_weights, obeys

AMPERE = (8, 0)


class Layers(nn.Module):
    """Linear layers that obey 2:4 and that do not, one whose weight is read twice, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.sparse, self.dense, self.odd = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 30)
        self.shared, self.conv = nn.Linear(64, 64, bias=False), nn.Conv1d(64, 64, 1)
        for layer in (self.sparse, self.odd, self.shared):
            halve(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dense(torch.relu(self.sparse(x)))
        x = x + self.shared(x) + self.shared.weight.mean()
        return self.odd(self.conv(x[:, :, None])[:, :, 0])


def halve(layer: nn.Linear) -> None:
    scores = layer.weight.detach().abs().numpy()
    layer.weight.data *= torch.from_numpy(mask_of(pattern_of("2:4"), scores))


def graph_of(module: nn.Module, dtype: torch.dtype = torch.float16) -> Any:
    graph, tensors, _ = GraphFiles().dump(module.eval().to(dtype), Example.of(torch.randn(2, 64, dtype=dtype)))
    return GraphFiles().load(graph, {name: tensor.detach() for name, tensor in tensors.items()})


def test_two_of_four_neighbouring_inputs() -> None:
    weight = torch.tensor([[1.0, 0, 2, 0, 0, 0, 3, 4]])
    assert obeys(weight)
    weight[0, 1] = 1
    assert not obeys(weight)
    assert not obeys(torch.zeros(4, 6))  # six inputs are no fours
    assert not obeys(torch.zeros(4, 8, 1))


def test_weights_that_only_linear_layers_read_are_taken() -> None:
    module = graph_of(Layers())
    assert linear_weights(module) == ["sparse.weight", "dense.weight", "odd.weight"]


def test_what_obeys_is_packed_and_the_rest_untouched() -> None:
    packed, x = [], torch.randn(3, 64, dtype=torch.float16)

    def pack(weight: torch.Tensor) -> torch.Tensor:
        if weight.shape[0] % 16:
            raise RuntimeError(f"Error original_tensor.shape {tuple(weight.shape)} is not supported!")
        packed.append(weight)
        return weight.clone()

    module = graph_of(Layers())
    before = module(x)
    assert compress(module, AMPERE, pack) == {
        "sparse.weight": "",
        "odd.weight": "PyTorch does not take it: Error original_tensor.shape (30, 64) is not supported!",
    }
    assert len(packed) == 1
    assert module.get_buffer("sparse.weight") is not packed[0]
    torch.testing.assert_close(module(x), before)


def test_a_product_that_comes_out_wrong_is_not_used() -> None:
    module = graph_of(nn.Sequential(nn.Linear(64, 64)))
    module.get_buffer("0.weight").zero_()[:, 0] = 1
    before = module.get_buffer("0.weight")
    (why,) = compress(module, AMPERE, lambda weight: weight + 1).values()
    assert "off by" in why
    assert module.get_buffer("0.weight") is before


@pytest.mark.parametrize(
    ("dtype", "capability", "words"),
    [
        (torch.float32, (9, 0), "only fp16 and bf16"),
        (torch.float16, (7, 5), "compute capability 7.5 has no sparse units"),
        (torch.bfloat16, (9, 0), "PyTorch does not take it"),  # a tensor on the CPU
    ],
)
def test_what_is_left_dense_says_why(dtype: torch.dtype, capability: tuple[int, int], words: str) -> None:
    net = nn.Sequential(nn.Linear(64, 64))
    halve(net[0])
    (why,) = compress(graph_of(net, dtype), capability).values()
    assert words in why


def test_the_target_tells_of_each_file_what_became_of_its_weights(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(Cuda, "device", "cpu")
    target, net = find_target("cuda"), nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval()
    halve(net[1])
    path = target.export(net, Example.of(torch.randn(4, 64)), tmp_path / "net.safetensors", "fp16")
    runner = target.load(path)
    assert list(runner.notes) == ["1.weight"]
    assert "PyTorch does not take it" in runner.notes["1.weight"]
    assert runner({"input": np.ones((2, 64), np.float32)})[0].shape == (2, 64)
    assert find_target("torch").load(path).notes == {}
