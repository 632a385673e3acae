"""`pp.sparsify`: where the zeros stand, what else changes, and what a plan says of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import paretoprune as pp
from paretoprune.graph import tensors_of
from paretoprune.sparsity import Block, mask_of, matrix_of
from thin_networks import Small, batches, images, made

errors = pp.errors
WEIGHTS = ("conv1.weight", "conv2.weight", "block.0.up.weight", "block.0.down.weight", "fc1.weight", "fc2.weight")


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return made()


@pytest.fixture(scope="module")
def sparse(small: nn.Module) -> pp.Pruned:
    return pp.sparsify(small, images(), pattern="4x1", sparsity=0.6)


def matrices(model: nn.Module) -> dict[str, Any]:
    held = tensors_of(model)
    return {n: matrix_of(held[n].detach().numpy()) for n in WEIGHTS}


def test_zeros_stand_where_the_pattern_says_and_nothing_else_changes(small: nn.Module, sparse: pp.Pruned) -> None:
    before, after = matrices(small), matrices(sparse.model)
    assert type(sparse.model) is Small
    for name in WEIGHTS:
        mask = mask_of(Block(4, 1), np.abs(before[name]), 0.6)
        assert np.array_equal(after[name], np.where(mask, before[name], 0))
    whole, now = tensors_of(small), tensors_of(sparse.model)
    assert all(torch.equal(now[n], t) for n, t in whole.items() if n not in WEIGHTS)
    assert sparse.plan.sparsity == dict.fromkeys(WEIGHTS, "4x1@0.6")
    assert any("weights in 6 layers are zero" in n for n in sparse.notes)
    graph = tensors_of(sparse.program.module)
    assert all(torch.equal(graph[n], now[n]) for n in WEIGHTS)


def test_the_given_network_is_left_alone(small: nn.Module) -> None:
    before = copy.deepcopy(small.state_dict())
    pp.sparsify(small, images(), pattern="2:4", criterion="wanda", calibration=batches())
    assert all(torch.equal(before[k], v) for k, v in small.state_dict().items())


def test_a_sparse_network_is_saved_loaded_and_replayed(small: nn.Module, sparse: pp.Pruned, tmp_path: Path) -> None:
    loaded = pp.load(pp.save(sparse, tmp_path / "net"), made())
    assert loaded.plan == sparse.plan
    again = pp.apply(made(), images(), sparse.plan.to_json())
    for network in (loaded, again):
        assert type(network.model) is Small
        for name, matrix in matrices(network.model).items():
            assert np.array_equal(matrix, matrices(sparse.model)[name])
