"""Layers without what a capture cannot follow: fused kernels, branches on a mask's values, what eval mode remembers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import transformer


@contextmanager
def plain_layers(model: nn.Module) -> Iterator[None]:
    """Capture in this block. Raises what is raised inside.

    Attention and encoder layers run operator by operator, and a mask is a mask, causal or not.

    `nn.Transformer` looks whether the mask that it is given is the causal one, to hint it to the kernel: the mask
    itself says the same. Some layers compute a table (of position biases, say) once for eval mode and drop it when
    they train: as a constant of the graph its parameters could not learn.
    """
    _forget(model)
    fast = torch.backends.mha.get_fastpath_enabled()
    look = getattr(transformer, "_detect_is_causal_mask", None)
    torch.backends.mha.set_fastpath_enabled(False)
    if look is not None:
        transformer._detect_is_causal_mask = _hinted
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if look is not None:
            transformer._detect_is_causal_mask = look
        _forget(model)


def _forget(model: nn.Module) -> None:
    model.train()
    model.eval()


def _hinted(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is True
