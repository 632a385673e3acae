"""Programs made by hand: a sequential network whose hooks stand in for a captured graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from paretoprune.core.graph import BatchNorm, Contraction, Example


def conv_contraction(name: str, conv: nn.Conv2d, batch_norm: str | None) -> Contraction:
    def rows(x: Tensor) -> Tensor:
        columns = functional.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        return columns.transpose(0, 1).flatten(1).T

    return Contraction(
        name,
        f"{name}.weight",
        None if conv.bias is None else f"{name}.bias",
        1,
        rows,
        lambda w: w.flatten(1),
        lambda m, shape: m.reshape(shape),
        batch_norm=batch_norm,
    )


def linear_contraction(name: str, linear: nn.Linear) -> Contraction:
    return Contraction(
        name,
        f"{name}.weight",
        None if linear.bias is None else f"{name}.bias",
        1,
        lambda x: x.flatten(0, -2),
        lambda w: w,
        lambda m, shape: m.reshape(shape),
    )


class HookProgram:
    """A Program over any module made of Conv2d, Linear and BatchNorm. `follows` names the norm behind a convolution."""

    def __init__(self, module: nn.Module, follows: Mapping[str, str] | None = None) -> None:
        self.module = module.eval()
        self.calls = 0
        follows = follows or {}
        contractions, norms = [], []
        for name, part in module.named_modules():
            if isinstance(part, nn.Conv2d):
                contractions.append(conv_contraction(name, part, follows.get(name)))
            elif isinstance(part, nn.Linear):
                contractions.append(linear_contraction(name, part))
            elif isinstance(part, nn.modules.batchnorm._BatchNorm):
                norms.append(BatchNorm(name, f"{name}.running_mean", f"{name}.running_var"))
        self.contractions = tuple(contractions)
        self.batch_norms = tuple(norms)

    def observe(
        self, inputs: Example, watch: Mapping[str, Callable[[Tensor], None]], *, batch_statistics: bool = False
    ) -> Any:
        self.calls += 1
        parts = dict(self.module.named_modules())
        norms = [parts[b.node] for b in self.batch_norms]
        handles = [
            parts[node].register_forward_pre_hook(lambda _, args, see=see: see(args[0])) for node, see in watch.items()
        ]
        kept = [(n.training, n.track_running_stats) for n in norms]
        for norm in norms if batch_statistics else ():
            norm.training, norm.track_running_stats = True, False
        try:
            with torch.no_grad():
                return self.module(*inputs.args, **inputs.kwargs)
        finally:
            for norm, (training, tracks) in zip(norms, kept, strict=True):
                norm.training, norm.track_running_stats = training, tracks
            for handle in handles:
                handle.remove()


def make_net(widths: tuple[int, int] = (8, 12), seed: int = 0, bias: bool = False) -> nn.Sequential:
    """Two convolutions with batch norm, a pooled head of 5 classes; statistics and scales away from 0 and 1."""
    torch.manual_seed(seed)
    a, b = widths
    net = nn.Sequential(
        nn.Conv2d(3, a, 3, padding=1, bias=bias),
        nn.BatchNorm2d(a),
        nn.ReLU(),
        nn.Conv2d(a, b, 3, padding=1, bias=bias),
        nn.BatchNorm2d(b),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(b, 5),
    )
    for part in net:
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return net.eval()


@pytest.fixture
def hook_program() -> type[HookProgram]:
    return HookProgram


@pytest.fixture
def net() -> Callable[..., nn.Sequential]:
    return make_net


@pytest.fixture
def images() -> list[Tensor]:
    """8 batches of 16 random images with some structure."""
    made = torch.Generator().manual_seed(1)
    mix = torch.randn(3, 3, generator=made)
    return [
        torch.einsum("dc,bchw->bdhw", mix, torch.randn(16, 3, 8, 8, generator=made))
        + torch.rand(16, 3, 1, 1, generator=made)
        for _ in range(8)
    ]
