"""What every refusal has to keep: one line, no file, and the caller's network as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paretoprune as pp

Ways = dict[str, Callable[[nn.Module, Any], Any]]


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Weights, gradients, modes, hooks, attributes and the random state are the same when the block is left."""
    before, rng = _state(model), torch.get_rng_state()
    yield
    assert torch.equal(rng, torch.get_rng_state())
    for now, then in zip(_state(model), before, strict=True):
        assert now == then


def _state(model: nn.Module) -> list[Any]:
    named = (*model.named_parameters(), *model.named_buffers())
    held = [
        (n, id(t), t._version, t.requires_grad, _bytes(t), None if t.grad is None else _bytes(t.grad)) for n, t in named
    ]
    modules = [(n, type(m), m.training, list(m._forward_hooks), sorted(vars(m))) for n, m in model.named_modules()]
    return [held, modules]


def _bytes(tensor: torch.Tensor) -> Any:
    if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
        return None
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


class Kept:
    """What the tests of this folder share."""

    unchanged = staticmethod(unchanged)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trace: Callable[..., Any] = pp.trace
        self.prune: Callable[..., Any] = lambda model, example: pp.prune(model, example, ratio=0.5)
        self.export: Callable[..., Any] = lambda model, example: pp.export(model, example, folder / "f.onnx")

    def refused(self, way: str, model: nn.Module, example: Any, kind: type[Exception], *words: str) -> str:
        """The one line with which `way` ("trace", "prune" or "export") refuses; nothing is changed or written."""
        with unchanged(model), pytest.raises(kind) as error:
            getattr(self, way)(model, example)
        text = str(error.value)
        assert "\n" not in text
        for word in words:
            assert word in text, text
        assert list(self.folder.iterdir()) == []
        return text


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    folder = tmp_path / "out"
    folder.mkdir()
    return Kept(folder)
