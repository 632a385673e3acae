"""Every operator rule, through a real capture of a small network, against an oracle that is not the room's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paretoprune import graph as graphs
from paretoprune.core.plan import Plan

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ROW = torch.randn(2, 6, generator=torch.Generator().manual_seed(2))
TOKENS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(3))


def conv(i: int, o: int, k: int = 3, **kw: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=kw.pop("padding", k // 2), **kw)


def head(m: Any, x: torch.Tensor) -> Any:
    return m.out(x.mean((2, 3)))


# Each case: parts, forward, example, the prunable axes with their sizes.
CASES: dict[str, tuple[dict[str, Any], Any, Any, dict[str, int]]] = {
    # contractions
    "conv1d": (
        {"a": nn.Conv1d(6, 8, 3, padding=2, dilation=2), "b": nn.Conv1d(8, 4, 1, bias=False)},
        lambda m, x: m.b(F.relu(m.a(x))),
        torch.randn(2, 6, 9),
        {"a": 8},
    ),
    "conv2d": (
        {"a": conv(3, 8, stride=2), "b": conv(8, 6, bias=False), "c": conv(6, 4)},
        lambda m, x: m.c(F.gelu(m.b(F.relu(m.a(x))))),
        IMAGE,
        {"a": 8, "b": 6},
    ),
    "conv3d": (
        {"a": nn.Conv3d(2, 6, 3), "b": nn.Conv3d(6, 4, 2, groups=2)},
        lambda m, x: m.b(m.a(x)),
        torch.randn(2, 2, 5, 5, 5),
        {"a#2": 3},
    ),
    "conv same padding": (
        {"a": conv(3, 8, 3, padding="same", dilation=2), "b": conv(8, 4, 3, padding="valid")},
        lambda m, x: m.b(m.a(x)),
        IMAGE,
        {"a": 8},
    ),
    "grouped": (
        {"a": conv(3, 12), "b": conv(12, 18, groups=3), "c": conv(18, 4)},
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))),
        IMAGE,
        {"a": 3, "a#2": 4, "b": 6},
    ),
    "depthwise": (
        {"a": conv(3, 8, 1), "b": conv(8, 8, groups=8), "c": conv(8, 4, 1)},
        lambda m, x: m.c(F.relu6(m.b(F.relu6(m.a(x))))),
        IMAGE,
        {"a": 8},
    ),
    "depthwise multiplier": (
        {"a": conv(3, 6, 1), "b": conv(6, 12, groups=6), "c": conv(12, 4, 1)},
        lambda m, x: m.c(m.b(m.a(x))),
        IMAGE,
        {"a": 6, "b": 2},
    ),
    "transposed": (
        {"a": conv(3, 8), "b": nn.ConvTranspose2d(8, 6, 2, stride=2), "c": conv(6, 4)},
        lambda m, x: m.c(F.relu(m.b(m.a(x)))),
        IMAGE,
        {"a": 8, "b": 6},
    ),
    "transposed 1d and 3d": (
        {
            "a": nn.Conv1d(6, 4, 1),
            "b": nn.ConvTranspose1d(4, 6, 2),
            "c": nn.ConvTranspose3d(6, 5, 2),
            "d": nn.Conv3d(5, 2, 1),
        },
        lambda m, x: m.d(m.c(m.b(m.a(x))[:, :, :, None, None])),
        torch.randn(2, 6, 5),
        {"a": 4, "b": 6, "c": 5},
    ),
    "transposed grouped": (
        {"a": conv(3, 8), "b": nn.ConvTranspose2d(8, 12, 3, groups=2), "c": conv(12, 4)},
        lambda m, x: m.c(m.b(m.a(x))),
        IMAGE,
        {"a": 2, "a#2": 4, "b": 6},
    ),
    "linear": (
        {"a": nn.Linear(6, 8), "b": nn.Linear(8, 5, bias=False), "c": nn.Linear(5, 3)},
        lambda m, x: m.c(torch.tanh(m.b(F.silu(m.a(x))))),
        ROW,
        {"a": 8, "b": 5},
    ),
    "linear on tokens": (
        {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3)},
        lambda m, x: m.b(F.gelu(m.a(x))),
        TOKENS,
        {"a": 8},
    ),
    "matmul with parameters": (
        {
            "p": nn.Parameter(torch.randn(6, 8)),
            "q": nn.Parameter(torch.randn(8, 4)),
            "r": nn.Parameter(torch.randn(4, 3)),
            "s": nn.Parameter(torch.randn(3)),
        },
        lambda m, x: torch.addmm(m.s, torch.mm(x @ m.p, m.q), m.r),
        ROW,
        {"p#2": 8, "q": 4},
    ),
    # normalisation
    "batch norm": (
        {"a": conv(3, 8, bias=False), "n": nn.BatchNorm2d(8), "b": conv(8, 4), "k": nn.BatchNorm2d(4, affine=False)},
        lambda m, x: m.k(m.b(F.relu(m.n(m.a(x))))),
        IMAGE,
        {"a": 8},
    ),
    "batch norm momentum none": (
        {"a": nn.Linear(6, 8), "n": nn.BatchNorm1d(8, momentum=None), "b": nn.Linear(8, 3)},
        lambda m, x: m.b(m.n(m.a(x))),
        ROW,
        {"a": 8},
    ),
    "instance norm": (
        {"a": conv(3, 8), "n": nn.InstanceNorm2d(8, affine=True, track_running_stats=True), "b": conv(8, 4)},
        lambda m, x: m.b(m.n(m.a(x))),
        IMAGE,
        {"a": 8},
    ),
    # pointwise with broadcasting
    "scalars": (
        {"a": conv(3, 8), "b": conv(8, 4), "s": nn.Parameter(torch.ones(())), "t": nn.Parameter(torch.ones(1))},
        lambda m, x: m.b((m.a(x) * 2 + 1 - m.s) / 3 * m.t),
        IMAGE,
        {"a": 8},
    ),
    "per channel": (
        {
            "a": conv(3, 8),
            "b": conv(8, 4),
            "g": nn.Parameter(torch.ones(8, 1, 1)),
            "d": nn.Parameter(torch.ones(1, 8, 1, 1)),
        },
        lambda m, x: m.b(torch.add(m.a(x) * m.g, m.d, alpha=3)),
        IMAGE,
        {"a": 8},
    ),
    "divided by a parameter": (
        {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3), "d": nn.Parameter(torch.ones(8))},
        lambda m, x: m.b(m.a(x) / (m.d * m.d + 1) + (m.d * m.d + 0.1).log() + (m.d * m.d + 0.1).rsqrt()),
        ROW,
        {"a": 8},
    ),
    "squeeze and excite": (
        {"a": conv(3, 8), "d": conv(8, 2, 1), "u": conv(2, 8, 1), "b": conv(8, 4)},
        lambda m, x: (lambda y: m.b(y * torch.sigmoid(m.u(F.relu(m.d(F.adaptive_avg_pool2d(y, 1)))))))(m.a(x)),
        IMAGE,
        {"a": 8, "d": 2},
    ),
    "channel times spatial": (
        {"a": conv(3, 8), "s": conv(3, 1), "b": conv(8, 4)},
        lambda m, x: m.b(m.a(x) * torch.sigmoid(m.s(x))),
        IMAGE,
        {"a": 8},
    ),
    "activations": (
        {"a": nn.Linear(6, 8), "p": nn.PReLU(8), "q": nn.PReLU(), "b": nn.Linear(8, 3)},
        lambda m, x: m.b(m.q(m.p(F.hardswish(F.leaky_relu(F.elu(F.softplus(F.mish(F.hardtanh(m.a(x), -2, 3))))))))),
        ROW,
        {"a": 8},
    ),
    "where and compare": (
        {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3), "t": nn.Parameter(torch.zeros(8))},
        lambda m, x: (lambda y: m.b(torch.where(y > m.t, y, y.exp().clamp(max=2)) + torch.maximum(y, m.t)))(m.a(x)),
        ROW,
        {"a": 8},
    ),
    # pooling
    "pooling": (
        {"a": conv(3, 8), "b": conv(8, 4)},
        lambda m, x: m.b(
            F.interpolate(F.avg_pool2d(F.max_pool2d(m.a(x), 2, padding=1), 2, ceil_mode=True), scale_factor=2)
        ),
        IMAGE,
        {"a": 8},
    ),
    "adaptive pooling": (
        {"a": conv(3, 8), "out": nn.Linear(16, 4)},
        lambda m, x: m.out(
            torch.cat([F.adaptive_avg_pool2d(m.a(x), 1), F.adaptive_max_pool2d(m.a(x), 1)], 1).flatten(1)
        ),
        IMAGE,
        {"a": 8},
    ),
    # layout
    "hard-coded view": (
        {"a": conv(3, 4), "b": nn.Linear(4 * 8 * 8, 5), "c": nn.Linear(5, 2)},
        lambda m, x: m.c(m.b(m.a(x).view(-1, 4 * 8 * 8))),
        IMAGE,
        {"a": 4, "b": 5},
    ),
    "channels-last flatten": (
        {"a": conv(3, 4), "b": nn.Linear(8 * 8 * 4, 5)},
        lambda m, x: m.b(m.a(x).permute(0, 2, 3, 1).flatten(1)),
        IMAGE,
        {"a": 4},
    ),
    "transposes": (
        {"a": conv(3, 4), "b": nn.Linear(4, 6), "c": nn.Linear(6, 2)},
        lambda m, x: m.c(m.b(m.a(x).flatten(2).transpose(1, 2)).movedim(-1, 1).swapaxes(1, 2)),
        IMAGE,
        {"a": 4, "b": 6},
    ),
    "unflatten and reshape": (
        {"a": nn.Linear(6, 12), "b": nn.Linear(4, 5), "c": nn.Linear(15, 2)},
        lambda m, x: m.c(F.relu(m.b(m.a(x).unflatten(-1, (3, 4)))).reshape(x.shape[0], -1)),
        ROW,
        {"a": 3, "a#2": 4, "b": 5},
    ),
    "channel shuffle": (
        {"a": conv(3, 12), "b": conv(12, 12, groups=3), "c": conv(12, 4)},
        lambda m, x: m.c(
            (lambda y: y.view(x.size(0), 3, 4, 8, 8).transpose(1, 2).reshape(x.size(0), -1, 8, 8))(m.b(m.a(x)))
        ),
        IMAGE,
        {"a": 3, "a#2": 4, "b": 4},
    ),
    "squeeze": (
        {"a": conv(3, 8), "out": nn.Linear(8, 3)},
        lambda m, x: m.out(F.adaptive_avg_pool2d(m.a(x), 1).squeeze()),
        IMAGE,
        {"a": 8},
    ),
    "squeeze and unsqueeze": (
        {"a": nn.Linear(6, 8), "b": nn.Linear(4, 3), "c": nn.Conv1d(8, 4, 1)},
        lambda m, x: m.b(m.c(m.a(x).unsqueeze(1).transpose(1, 2)).squeeze(-1).unsqueeze(1)),
        ROW,
        {"a": 8, "c": 4},
    ),
    "expand": (
        {"a": nn.Linear(6, 8), "e": nn.Parameter(torch.randn(1, 1, 1)), "b": nn.Linear(8, 3)},
        lambda m, x: m.b(m.a(x) * m.e.expand(x.shape[0], 5, 8)),
        TOKENS,
        {"a": 8},
    ),
    "repeat": (
        {"a": nn.Linear(6, 4), "b": nn.Linear(12, 3)},
        lambda m, x: m.b(m.a(x).repeat(1, 3)),
        ROW,
        {"a": 4},
    ),
    "dynamic products": (
        {"a": nn.Linear(6, 12), "b": nn.Linear(4, 5), "c": nn.Linear(15, 2)},
        lambda m, x: m.c(m.b(m.a(x).view(x.size(0) * 3, 4)).view(x.size(0), 3 * 5)),
        ROW,
        {"a": 3, "a#2": 4, "b": 5},
    ),
    # pieces
    "dense": (
        {"a": conv(3, 4), "b": conv(7, 4), "c": conv(11, 5), "d": conv(16, 2)},
        lambda m, x: (lambda y: (lambda z: m.d(torch.cat([z, m.c(z)], 1)))(torch.cat([y, m.b(y)], 1)))(
            torch.cat([x, m.a(x)], 1)
        ),
        IMAGE,
        {"a": 4, "b": 4, "c": 5},
    ),
    "cat after flatten": (
        {"a": conv(3, 2), "b": nn.Linear(3, 4), "out": nn.Linear(2 * 64 + 4, 3)},
        lambda m, x: m.out(torch.cat([m.a(x).flatten(1), m.b(x.mean((2, 3)))], -1)),
        IMAGE,
        {"a": 2, "b": 4},
    ),
    "split uneven": (
        {"a": nn.Linear(6, 10), "b": nn.Linear(3, 4), "c": nn.Linear(7, 4)},
        lambda m, x: (lambda p, q: m.b(p) + m.c(q))(*m.a(x).split([3, 7], dim=-1)),
        ROW,
        {"a": 3, "a#2": 7},
    ),
    "chunk gate": (
        {"a": nn.Linear(6, 10), "b": nn.Linear(5, 4)},
        lambda m, x: (lambda p, q: m.b(p * torch.sigmoid(q)))(*m.a(x).chunk(2, -1)),
        ROW,
        {"a": 5},
    ),
    "slices": (
        {"a": nn.Linear(6, 10), "b": nn.Linear(4, 4), "c": nn.Linear(3, 4), "d": nn.Linear(3, 4)},
        lambda m, x: (lambda y: m.b(y[:, :4]) + m.c(y[:, 4:7]) + m.d(y[:, -3:]))(m.a(x)),
        ROW,
        {"a": 4, "a#2": 3, "a#3": 3},
    ),
    "strided slices": (
        {"a": nn.Linear(6, 12), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)},
        lambda m, x: (lambda y: m.b(y[:, 1::3]) + m.c(y[:, -12::3]))(m.a(x)),
        ROW,
        {"a": 4},
    ),
    "pad channels (option A)": (
        {"a": conv(3, 4), "b": conv(4, 8, stride=2), "c": conv(8, 5)},
        lambda m, x: (lambda y: m.c(m.b(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))))(m.a(x)),
        IMAGE,
        {"a": 4, "b": 2, "b#2": 2},
    ),
    "zeros beside channels": (
        {"a": conv(3, 4), "b": conv(10, 5)},
        lambda m, x: m.b(torch.cat([m.a(x), x.new_zeros(x.size(0), 4, 8, 8), torch.zeros_like(x)[:, :2]], 1)),
        IMAGE,
        {"a": 4, "b#2": 4},
    ),
    # reductions
    "sum over channels": (
        {"a": conv(3, 8), "b": conv(1, 4)},
        lambda m, x: m.b(F.relu(m.a(x)).sum(1, keepdim=True)),
        IMAGE,
        {"a": 8},
    ),
    "mean over channels": (
        {"a": conv(3, 8, bias=False), "out": nn.Linear(8, 3)},
        lambda m, x: m.out(m.a(x).mean((1, 2))),
        IMAGE,
        {"a": 8},
    ),
    "mean keepdim": (
        {"a": conv(3, 8), "b": conv(1, 4)},
        lambda m, x: m.b(torch.tanh(m.a(x)).mean([1], keepdim=True)),
        IMAGE,
        {"a": 8},
    ),
    "mean over pixels": (
        {"a": conv(3, 8), "out": nn.Linear(8, 3)},
        lambda m, x: head(m, m.a(x)),
        IMAGE,
        {"a": 8},
    ),
    # in place
    "in place": (
        {"a": conv(3, 8), "b": conv(8, 8), "c": conv(8, 4)},
        lambda m, x: (lambda y: m.c(m.b(y).add_(y).relu_().mul_(2)))(F.relu_(m.a(x))),
        IMAGE,
        {"a": 8},
    ),
    "in place on the input": (
        {"a": conv(3, 8), "b": conv(8, 4)},
        lambda m, x: m.b(m.a(F.relu_(x)) + x.sum(1, keepdim=True)),
        IMAGE,
        {"a": 8},
    ),
    "dropout": (
        {"a": conv(3, 8), "d": nn.Dropout2d(), "e": nn.Dropout(0.3), "b": conv(8, 4)},
        lambda m, x: m.b(m.e(m.d(m.a(x)))),
        IMAGE,
        {"a": 8},
    ),
    "constants": (
        {"a": nn.Linear(6, 8), "k": torch.randn(8), "b": nn.Linear(8, 3)},
        lambda m, x: m.b(m.a(x) * m.k + torch.arange(8.0) * 0 + torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])),
        ROW,
        {},
    ),
    "called twice": (
        {"a": nn.Linear(6, 6), "b": nn.Linear(6, 6, bias=False), "c": nn.Linear(6, 3)},
        lambda m, x: m.c(m.b(F.relu(m.b(F.relu(m.a(x)))))),
        ROW,
        {"a": 6},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_pruned_equals_the_zeroed_network(name: str, tools: Any) -> None:
    parts, forward, example, expected = CASES[name]
    graph = tools.prove(tools.Net(forward, **parts), example)
    assert tools.prunable(graph) == expected
