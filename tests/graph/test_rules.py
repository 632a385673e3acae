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
    "bilinear": (
        {"a": nn.Linear(6, 8), "b": nn.Linear(6, 4), "j": nn.Bilinear(8, 4, 5), "c": nn.Linear(5, 2)},
        lambda m, x: m.c(m.j(m.a(x).sigmoid(), m.b(x).exp()).tanh()),
        ROW,
        {"a": 8, "b": 4, "j": 5},
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
        {"a": 4, "b#2": 3},
    ),
    "dynamic products": (
        {"a": nn.Linear(6, 12), "b": nn.Linear(4, 5), "c": nn.Linear(15, 2)},
        lambda m, x: m.c(m.b(m.a(x).view(x.size(0) * 3, 4)).view(x.size(0), 3 * 5)),
        ROW,
        {"a": 3, "a#2": 4, "b": 5},
    ),
    "dynamic births": (
        {"a": nn.Linear(6, 12), "e": nn.Parameter(torch.randn(1, 4)), "b": nn.Linear(4, 5), "c": nn.Linear(15, 2)},
        lambda m, x: (
            lambda n: m.c(
                m.b((m.a(x).view(n, 4) + x.new_zeros(n, 4)) * m.e.expand(n, 4) + torch.zeros(n, 1)).view(-1, 15)
            )
        )(x.size(0) * 3),
        ROW,
        {"a": 4, "a#2": 3, "b": 5},
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
        lambda m, x: (lambda y: m.b(y[:, 1::3]) + m.c(y[:, -11::3]))(m.a(x)),
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
        {"a": 8},
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


# Normalisations over an axis: statistics over kept positions, so the oracle is torch's own layer at the kept width.
NORMS: dict[str, tuple[dict[str, Any], Any, Any, dict[str, int]]] = {
    "layer norm": (
        {"a": nn.Linear(6, 8), "n": nn.LayerNorm(8), "b": nn.Linear(8, 3)},
        lambda m, x: m.b(m.n(m.a(x))),
        TOKENS,
        {"a": 8},
    ),
    "layer norm without weights": (
        {"a": nn.Linear(6, 8), "n": nn.LayerNorm(8, elementwise_affine=False), "b": nn.Linear(8, 3)},
        lambda m, x: m.b(m.n(m.a(x))),
        TOKENS,
        {"a": 8},
    ),
    "rms norm": (
        {"a": nn.Linear(6, 8), "n": nn.RMSNorm(8), "b": nn.Linear(8, 3)},
        lambda m, x: m.b(m.n(m.a(x))),
        TOKENS,
        {"a": 8},
    ),
    "group norm": (
        {"a": conv(3, 12), "n": nn.GroupNorm(3, 12), "b": conv(12, 4)},
        lambda m, x: m.b(m.n(m.a(x))),
        IMAGE,
        {"a": 3, "a#2": 4},
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalisations_take_statistics_over_kept_positions(name: str, tools: Any) -> None:
    parts, forward, example, expected = NORMS[name]
    model = tools.Net(forward, **parts)
    graph = tools.prove(model, example, eager=False, least=2)  # the norm of one position is a constant
    assert tools.prunable(graph) == expected
    for plan in tools.plans(graph, least=2):
        cut = graphs.cut(graph, plan)
        rebuilt, reason = graphs.rebuild(model, graph, cut)
        assert rebuilt is not None, reason
        torch.testing.assert_close(rebuilt(example), cut.program.module(example))
        assert type(rebuilt.n) is type(model.n)


def test_layer_norm_at_half_width_is_a_layer_norm_of_the_half(tools: Any) -> None:
    parts, forward, example, _ = NORMS["layer norm"]
    model = tools.randomise(tools.Net(forward, **parts))
    graph = graphs.trace(model, example)
    pruned = graphs.cut(graph, Plan({"a": (0, 3, 4)})).program.module
    hidden = model.a(example)[..., [0, 3, 4]]
    normal = F.layer_norm(hidden, (3,), model.n.weight[[0, 3, 4]], model.n.bias[[0, 3, 4]])
    torch.testing.assert_close(pruned(example), F.linear(normal, model.b.weight[:, [0, 3, 4]], model.b.bias))


def test_mean_keeps_its_divisor(tools: Any) -> None:
    model = tools.randomise(
        tools.Net(lambda m, x: m.b(m.a(x).mean(1, keepdim=True)), a=nn.Linear(6, 8, bias=False), b=nn.Linear(1, 2))
    )
    graph = graphs.trace(model, ROW)
    pruned = graphs.cut(graph, Plan({"a": (1, 5)})).program.module
    want = model.b(model.a(ROW)[:, [1, 5]].sum(1, keepdim=True) / 8)
    torch.testing.assert_close(pruned(ROW), want)


# What must stay, and the words that say why: parts, forward, example, parameter, dim, words.
FROZEN: dict[str, tuple[dict[str, Any], Any, Any, str, int, str]] = {
    "input": ({"a": nn.Linear(6, 4)}, lambda m, x: m.a(x), ROW, "a.weight", 1, "it is an input of the network"),
    "output": ({"a": nn.Linear(6, 4)}, lambda m, x: m.a(x), ROW, "a.weight", 0, "it is an output of the network"),
    "softmax": (
        {"a": nn.Linear(6, 4), "b": nn.Linear(4, 2)},
        lambda m, x: m.b(m.a(x).softmax(-1)),
        ROW,
        "a.weight",
        0,
        "compete in a softmax",
    ),
    "sigmoid then sum": (
        {"a": conv(3, 4, bias=False), "b": conv(1, 2)},
        lambda m, x: m.b(torch.sigmoid(m.a(x)).sum(1, keepdim=True)),
        IMAGE,
        "a.weight",
        0,
        "what is removed is not zero",
    ),
    "constant then sum": (
        {"a": conv(3, 4), "b": conv(1, 2)},
        lambda m, x: m.b((m.a(x) + 0.5).mean(1, keepdim=True)),
        IMAGE,
        "a.weight",
        0,
        "what is removed is not zero",
    ),
    "bias of an outer layer then sum": (
        {"a": nn.Linear(6, 4, bias=False), "p": nn.Parameter(torch.randn(1)), "b": nn.Linear(1, 2)},
        lambda m, x: m.b((m.a(x) + m.p).sum(-1, keepdim=True)),
        ROW,
        "a.weight",
        0,
        "what is removed is not zero",
    ),
    "padding with ones then sum": (
        {"a": conv(3, 4), "b": conv(1, 2)},
        lambda m, x: m.b(F.pad(m.a(x), (1, 1, 1, 1), value=1.0).sum(1, keepdim=True)),
        IMAGE,
        "a.weight",
        0,
        "what is removed is not zero",
    ),
    "hardtanh off zero then sum": (
        {"a": conv(3, 4), "b": conv(1, 2)},
        lambda m, x: m.b(F.hardtanh(m.a(x), 0.5, 2.0).sum(1, keepdim=True)),
        IMAGE,
        "a.weight",
        0,
        "what is removed is not zero",
    ),
    "product of activations": (
        {"a": nn.Linear(6, 4), "b": nn.Linear(6, 4)},
        lambda m, x: torch.matmul(m.a(x).sigmoid().unsqueeze(1), m.b(x).sigmoid().unsqueeze(2)).squeeze(-1),
        ROW,
        "a.weight",
        0,
        "against another activation",
    ),
    "maximum": (
        {"a": conv(3, 4), "b": conv(1, 2)},
        lambda m, x: m.b(m.a(x).amax(1, keepdim=True)),
        IMAGE,
        "a.weight",
        0,
        "a maximum is taken over it",
    ),
    "deviation": (
        {"a": nn.Linear(6, 4), "b": nn.Linear(1, 2)},
        lambda m, x: m.b(m.a(x).std(-1, keepdim=True)),
        ROW,
        "a.weight",
        0,
        "no removed position is neutral",
    ),
    "channels as positions": (
        {"a": conv(3, 8), "e": nn.Conv1d(1, 1, 3, padding=1), "b": conv(8, 2)},
        lambda m, x: (lambda y: m.b(y * m.e(y.mean((2, 3)).unsqueeze(1)).transpose(1, 2)[..., None]))(m.a(x)),
        IMAGE,
        "a.weight",
        0,
        "its positions are spatial",
    ),
    "read by number": (
        {"a": nn.Linear(6, 4), "b": nn.Linear(4, 2)},
        lambda m, x: (lambda y: m.b(y) + y[:, 2:3] * 0 + y.select(1, 1)[:, None])(m.a(x)),
        ROW,
        "a.weight",
        0,
        "single positions of it are read by number",
    ),
    "cumulative sum": (
        {"a": nn.Linear(6, 4), "b": nn.Linear(4, 2)},
        lambda m, x: m.b(torch.cumsum(m.a(x).sigmoid(), -1)),
        ROW,
        "a.weight",
        0,
        "it is summed up along and what is removed is not zero there",
    ),
    "fft": (
        {"a": nn.Linear(6, 4), "b": nn.Linear(3, 2)},
        lambda m, x: m.b(torch.fft.rfft(m.a(x)).abs()),
        ROW,
        "a.weight",
        0,
        "a Fourier transform mixes its positions",
    ),
    "written in place through a view": (
        {"a": nn.Linear(6, 4), "b": nn.Linear(4, 2)},
        lambda m, x: (lambda y: (y.view(-1, 4).add_(1), m.b(y))[1])(m.a(x) * 1),
        ROW,
        "a.weight",
        0,
        "add_ has no rule",
    ),
    "shifted against itself": (
        {"a": nn.Linear(6, 5000), "b": nn.Linear(4999, 2)},
        lambda m, x: (lambda y: m.b(y[:, 1:] + y[:, :-1]))(m.a(x)),
        ROW,
        "a.weight",
        0,
        "pieces",
    ),
    "multiplied by itself": (
        {"a": nn.Linear(6, 3), "b": nn.Linear(9, 2)},
        lambda m, x: (lambda y: m.b((y[:, :, None] * y[:, None, :]).flatten(1)))(m.a(x)),
        ROW,
        "a.weight",
        0,
        "it is multiplied by itself",
    ),
    "batch statistics over a layer's outputs": (
        {"a": nn.Linear(6, 4), "n": nn.BatchNorm1d(5, track_running_stats=False), "b": nn.Linear(4, 2)},
        lambda m, x: m.b(m.n(m.a(x))),
        TOKENS,
        "a.weight",
        0,
        "statistics are taken over its positions",
    ),
    "instance statistics over a layer's outputs": (
        {"a": nn.Linear(6, 4), "n": nn.InstanceNorm1d(5), "b": nn.Linear(4, 2)},
        lambda m, x: m.b(m.n(m.a(x))),
        TOKENS,
        "a.weight",
        0,
        "statistics are taken over its positions",
    ),
    "overlapping halves": (
        {"a": nn.Linear(6, 9), "b": nn.Linear(3, 2)},
        lambda m, x: m.b(m.a(x)[:, ::4]),
        ROW,
        "a.weight",
        0,
        "a slice cuts across it",
    ),
    "mean over everything": (
        {"a": nn.Linear(6, 4), "b": nn.Linear(4, 2)},
        lambda m, x: (lambda y: m.b(y) * y.mean())(m.a(x).sigmoid()),
        ROW,
        "a.weight",
        0,
        "it is summed up and what is removed is not zero there",
    ),
    "a number is read": (
        {"a": nn.Linear(6, 4), "t": torch.tensor([2, 0]), "b": nn.Linear(2, 2)},
        lambda m, x: m.b(m.a(x)[:, m.t]),
        ROW,
        "a.weight",
        0,
        "its positions are looked up by number",
    ),
    "complex": (
        {"a": nn.Linear(6, 4), "z": nn.Parameter(torch.randn(4, dtype=torch.complex64)), "b": nn.Linear(4, 2)},
        lambda m, x: m.b((m.a(x) * m.z).abs()),
        ROW,
        "z",
        0,
        "it is complex",
    ),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_with_the_reason(name: str, tools: Any) -> None:
    parts, forward, example, parameter, dim, words = FROZEN[name]
    graph = tools.prove(tools.Net(forward, **parts), example, eager=False)
    reason = tools.why(graph, parameter, dim)
    assert words in reason
    assert not any(m.name == parameter and m.dim == dim for a in graph.axes if a.prunable for m in a.members)


def test_an_operator_without_a_rule_is_listed(tools: Any) -> None:
    net = tools.Net(lambda m, x: m.b(torch.cdist(m.a(x), m.a(x))), a=nn.Linear(6, 4), b=nn.Linear(5, 2))
    notes = graphs.trace(net, TOKENS).notes
    assert any("cdist" in n and "what it touches stays as it is" in n for n in notes)


def test_parameters_that_nothing_reads_are_frozen_and_listed(tools: Any) -> None:
    model = tools.Net(lambda m, x: m.b(m.a(x)), a=nn.Linear(6, 4), b=nn.Linear(4, 2), c=nn.Linear(5, 5))
    graph = tools.prove(model, ROW)
    assert tools.prunable(graph) == {"a": 4}
    assert tools.why(graph, "c.weight", 0) == "nothing reads parameter 'c.weight'"
    assert "nothing reads parameter 'c.bias': it stays as it is" in graph.notes
    assert graph.parameters() == sum(p.numel() for p in model.parameters())


def test_squeeze_keeps_a_dim_that_was_pruned_to_one(tools: Any) -> None:
    model = tools.randomise(
        tools.Net(lambda m, x: m.b(m.a(x).unsqueeze(0).squeeze()), a=nn.Linear(6, 4), b=nn.Linear(4, 2))
    )
    graph = graphs.trace(model, ROW)
    pruned = graphs.cut(graph, Plan({"a": (2,)})).program.module
    assert pruned(ROW).shape == (2, 2)


# -- inputs, outputs, names ------------------------------------------------------------------------------------------


def _structured(m: Any, x: torch.Tensor, scale: torch.Tensor | None = None, *, shift: torch.Tensor) -> dict[str, Any]:
    y = F.relu(m.a(x))
    y = y if scale is None else y * scale
    return {"logits": m.b(y), "nothing": None, "pair": (m.b(y) + shift, [m.c(y)])}


def test_nested_outputs_and_keyword_inputs(tools: Any) -> None:
    class Structured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

        def forward(self, x: Any, scale: Any = None, *, shift: Any) -> Any:
            return _structured(self, x, scale, shift=shift)

    example = {"shift": torch.randn(2, 3), "x": ROW, "scale": torch.rand(2, 1)}
    model = Structured()
    graph = tools.prove(model, example)
    assert tools.prunable(graph) == {"a": 8}
    cut = graphs.cut(graph, Plan({"a": (0, 1, 6)}))
    output = cut.program.module(**dict(reversed(example.items())))
    assert output["nothing"] is None
    assert isinstance(output["pair"][1], list)
    seen: list[torch.Size] = []
    node = cut.program.contractions[1].node
    reordered = type(graph.example)((), dict(reversed(graph.example.kwargs.items())))
    cut.program.observe(reordered, {node: lambda x: seen.append(x.shape)})
    assert seen == [(2, 3)]
    rebuilt, reason = graphs.rebuild(model, graph, cut)
    assert rebuilt is not None, reason
    torch.testing.assert_close(rebuilt(**example)["pair"][0], output["pair"][0])


def test_several_positional_inputs(tools: Any) -> None:
    model = tools.Net(
        lambda m, x, y: (m.c(m.a(x) * m.b(y)), y), a=nn.Linear(6, 8), b=nn.Linear(4, 8), c=nn.Linear(8, 3)
    )
    graph = tools.prove(model, (ROW, torch.randn(2, 4)))
    assert tools.prunable(graph) == {"a": 8}


def test_tied_weights_are_one(tools: Any) -> None:
    def build() -> nn.Module:
        model = tools.Net(
            lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)))) + m.d(x)),
            a=nn.Linear(6, 6),
            b=nn.Linear(6, 6),
            c=nn.Linear(6, 3),
            d=nn.Linear(6, 6),
        )
        model.b.weight = model.d.weight
        return model

    model = build()
    graph = tools.prove(model, ROW)
    assert tools.prunable(graph) == {"b": 6}  # d reads the input, so the tie freezes what b reads as well
    assert graph.parameters() == sum(p.numel() for p in model.parameters())


def test_tied_weights_stay_tied(tools: Any) -> None:
    model = tools.Net(
        lambda m, x: m.c(F.relu(m.b(F.relu(m.d(F.relu(m.a(x))))))),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 8),
        c=nn.Linear(8, 3),
        d=nn.Linear(8, 8),
    )
    model.b.weight = nn.Parameter(model.d.weight.data)  # another object over the same memory
    graph = tools.prove(model, ROW)
    assert tools.prunable(graph) == {"a": 8}
    cut = graphs.cut(graph, Plan({"a": (0, 2, 5)}))
    assert cut.program.module.b.weight is cut.program.module.d.weight
    rebuilt, reason = graphs.rebuild(model, graph, cut)
    assert rebuilt is not None, reason
    assert rebuilt.b.weight is rebuilt.d.weight
    assert graph.parameters({"a": 3}) == sum(p.numel() for p in rebuilt.parameters())


def test_shared_memory_in_another_layout_freezes(tools: Any) -> None:
    model = tools.Net(
        lambda m, x: (lambda y: m.b(y) + y @ m.p)(F.relu(m.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 6), p=None
    )
    model.p = nn.Parameter(model.b.weight.data.t())
    graph = graphs.trace(model, ROW)
    assert "shares memory with" in tools.why(graph, "b.weight", 1)
    assert any("shares memory" in n for n in graph.notes)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_and_spectral_norm_are_folded(old: bool, tools: Any) -> None:
    weight = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    spectral = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
    model = tools.Net(
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))),
        a=weight(nn.Linear(6, 8)),
        b=spectral(nn.Linear(8, 5)),
        c=nn.Linear(5, 3),
    ).eval()
    before, names = model(ROW), sorted(n for n, _ in model.named_parameters())
    graph = graphs.trace(model, ROW)
    assert tools.prunable(graph) == {"a": 8, "b": 5}
    assert sum("folded" in n for n in graph.notes) == 2
    plan = Plan({"a": (1, 4), "b": (0, 2)})
    graphs.check(graph, plan)
    whole, _ = graphs.rebuild(model, graph, graphs.cut(graph, Plan()))
    torch.testing.assert_close(whole(ROW), before)
    rebuilt, reason = graphs.rebuild(model, graph, graphs.cut(graph, plan))
    assert rebuilt is not None, reason
    assert sorted(n for n, _ in model.named_parameters()) == names
    torch.testing.assert_close(model(ROW), before)


def test_dynamic_names_further_dims(tools: Any) -> None:
    model = tools.Net(lambda m, x: m.b(F.relu(m.a(x))).mean(1), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    graph = tools.prove(model, TOKENS, dynamic={"input": [1]})
    pruned = graphs.cut(graph, Plan({"a": (0, 7)})).program.module
    assert pruned(torch.randn(3, 11, 6)).shape == (3, 3)
    assert graph.macs() == 5 * (6 * 8 + 8 * 3)
    assert graph.macs({"a": 2}) == 5 * (6 * 2 + 2 * 3)
    assert graph.layers({"a": 2})[0].rows == 5


def test_kinds(tools: Any) -> None:
    model = tools.Net(
        lambda m, x: (lambda y: m.out(m.g(F.relu(y + m.b(F.relu(m.a(y)))) + m.p.view(1, -1, 1, 1))))(m.stem(x)),
        stem=conv(3, 12),
        a=conv(12, 8),
        b=conv(8, 12),
        g=conv(12, 12, groups=3),
        out=conv(12, 4),
        p=nn.Parameter(torch.randn(12)),
    )
    graph = tools.prove(model, IMAGE)
    assert {a.id: a.kind for a in graph.axes if a.prunable} == {
        "stem": "residual",
        "stem#2": "residual",
        "a": "channel",
        "g": "within",
    }
    roles = {(m.name, m.dim): m.role for a in graph.axes if a.id == "a" for m in a.members}
    assert roles == {("a.weight", 0): "out", ("a.bias", 0): "out", ("b.weight", 1): "in"}
