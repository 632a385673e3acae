"""Keras on its torch backend, and small models with values that no initializer gives."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from paretoprune.core.graph import Example


@pytest.fixture(scope="session")
def keras() -> Any:
    if importlib.util.find_spec("keras") is None:
        pytest.skip("keras is not installed: pip install 'paretoprune[keras]'")
    before = os.environ.get("KERAS_BACKEND", "torch")
    if before != "torch":
        pytest.skip(f"KERAS_BACKEND is {before}")
    from paretoprune.frameworks.keras_backend import import_keras

    return import_keras()


@pytest.fixture
def unsettled(keras: Any) -> Callable[[Any], Any]:
    """Random values in every variable: averages, gains and biases are not zero and one."""

    def settle(model: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        for variable in model.weights:
            if len(variable.shape) < 2:
                variable.assign(torch.rand(tuple(variable.shape), generator=generator) + 0.5)
        return model

    return settle


def outputs(model: Any, example: Any) -> Tensor:
    """What a Keras model or a torch module gives in evaluation."""
    with torch.no_grad():
        if isinstance(model, torch.fx.GraphModule):
            given = Example.of(example)
            result: Tensor = model.eval()(*given.args, **given.kwargs)
            return result
        return torch.as_tensor(model(list(example) if isinstance(example, tuple) else example, training=False))


@pytest.fixture(scope="session")
def run() -> Callable[[Any, Any], Tensor]:
    return outputs
