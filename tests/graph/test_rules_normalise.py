"""Standardised weights, norms, means, deviations and extremes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paretoprune import graph as graphs
from paretoprune.core.plan import Plan

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(3))


class Standardised(nn.Conv2d):
    """Weight Standardization by a batch norm over every filter, as NF-ResNet and BiT spell it."""

    def __init__(self, i: int, o: int, gain: bool, **kw: Any):
        super().__init__(i, o, 3, padding=1, **kw)
        self.gain = nn.Parameter(torch.ones(o, 1, 1, 1)) if gain else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gain = None if self.gain is None else (self.gain * 0.5).view(-1)
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


class Spelled(nn.Conv2d):
    """The same with means and deviations written out."""

    def __init__(self, i: int, o: int, spelling: str, **kw: Any):
        super().__init__(i, o, 3, padding=1, **kw)
        self.spelling = spelling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w, dims = self.weight, (1, 2, 3)
        if self.spelling == "var_mean":
            var, mean = torch.var_mean(w, dim=dims, keepdim=True, unbiased=False)
            w = (w - mean) * torch.rsqrt(var + 1e-5)
        elif self.spelling == "std_mean":
            std, mean = torch.std_mean(w, dim=dims, keepdim=True)
            w = (w - mean) / (std + 1e-5)
        elif self.spelling == "std":
            w = (w - w.mean(dims, keepdim=True)) / (w.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)
        else:
            w = (w - w.mean(dims, keepdim=True)) / (w.var(dims, keepdim=True) + 1e-5).sqrt()
        return self._conv_forward(x, w, self.bias)


STANDARDISED = {
    "gain": lambda i, o, **kw: Standardised(i, o, True, **kw),
    "no gain": lambda i, o, **kw: Standardised(i, o, False, **kw),
    **{
        f"spelled by {s}": lambda i, o, s=s, **kw: Spelled(i, o, s, **kw)
        for s in ("var_mean", "std_mean", "std", "var")
    },
}


def two(m: Any, x: torch.Tensor) -> Any:
    return m.b(F.relu(m.a(x)))


@pytest.mark.parametrize("name", STANDARDISED)
def test_standardised_weights_take_statistics_over_kept_entries(name: str, tools: Any) -> None:
    """The oracle is the module itself, built at the pruned widths."""
    make = STANDARDISED[name]
    model = tools.randomise(tools.Net(two, a=make(3, 6), b=make(6, 4)))
    graph = tools.prove(model, IMAGE, eager=False)
    assert tools.prunable(graph) == {"a": 6}
    kept = torch.tensor([0, 2, 5])
    small = tools.Net(two, a=make(3, 3), b=make(3, 4)).eval()
    state = dict(model.state_dict())
    for key, value in state.items():
        state[key] = value[kept] if key.startswith("a.") else value[:, kept] if key == "b.weight" else value
    small.load_state_dict(state)
    pruned = graphs.cut(graph, Plan({"a": (0, 2, 5)})).program.module
    torch.testing.assert_close(pruned(IMAGE), small(IMAGE), rtol=1e-4, atol=1e-5)


def test_standardised_groups(tools: Any) -> None:
    make = STANDARDISED["gain"]
    model = tools.Net(lambda m, x: m.c(m.b(m.a(x))), a=make(3, 6), b=make(6, 6, groups=3), c=make(6, 4))
    assert tools.prunable(tools.prove(model, IMAGE, eager=False)) == {"a": 3, "a#2": 2, "b": 2}


def test_a_standardised_weight_after_a_sigmoid(tools: Any) -> None:
    """What is removed is no entry of the filter, so it need not be zero in the input."""
    make = STANDARDISED["gain"]
    model = tools.Net(lambda m, x: m.b(m.a(x).sigmoid()), a=nn.Conv2d(3, 6, 1), b=make(6, 4))
    assert tools.prunable(tools.prove(model, IMAGE, eager=False)) == {"a": 6}


def test_batch_statistics_of_an_activation_freeze_its_places(tools: Any) -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        return m.b(F.batch_norm(m.a(x), None, None, training=True))

    graph = tools.prove(tools.Net(forward, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 4, 1)), IMAGE)
    assert tools.prunable(graph) == {"a": 6}
    turned = tools.Net(lambda m, x: forward(m, x.mT), a=nn.Conv1d(5, 6, 1), b=nn.Conv1d(6, 4, 1), c=nn.Linear(6, 6))
    assert tools.prunable(tools.prove(turned, TOKENS.mT.contiguous())) == {"a": 6}


class Response(nn.Module):
    """Global Response Normalization (ConvNeXt V2, Woo et al. 2023, eq. 1 to 4), channels last."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.ones(1, 1, 1, width)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (size / (size.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x


def linear(function: Callable[[torch.Tensor], torch.Tensor], out: int = 5) -> Any:
    return {"a": nn.Linear(6, 5), "b": nn.Linear(out, 4)}, lambda m, x: m.b(function(m.a(x))), TOKENS


# Each case: (parts, forward, example), the prunable axes with their sizes.
CASES: dict[str, tuple[Any, dict[str, int]]] = {
    "global response": (
        (
            {"a": nn.Linear(6, 5), "g": Response(5), "b": nn.Linear(5, 4)},
            lambda m, x: m.b(m.g(F.gelu(m.a(x.unflatten(1, (5, 1)))))),
            TOKENS,
        ),
        {"a": 5},
    ),
    "unit length": (linear(lambda x: F.normalize(x, dim=-1)), {"a": 5}),
    "unit length in other norms": (
        linear(
            lambda x: F.normalize(x, p=1.0, dim=-1) + F.normalize(x, p=3.0) + x / (1 + x.norm(dim=-1, keepdim=True))
        ),
        {"a": 5},
    ),
    "largest entry": (
        linear(lambda x: x / (1 + torch.linalg.vector_norm(x, ord=float("inf"), dim=-1, keepdim=True))),
        {"a": 5},
    ),
    "matrix and vector norms": (
        linear(
            lambda x: x / (1 + torch.linalg.norm(x, dim=-1, keepdim=True) + torch.linalg.norm(x, dim=(-2, -1)).sum())
        ),
        {"a": 5},
    ),
    "root mean square of a part": (linear(lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True).exp())), {"a": 5}),
    "mean over everything": (linear(lambda x: x * x.mean()), {"a": 5}),
    "mean of channels and tokens": (linear(lambda x: x * x.mean((1, 2), keepdim=True)), {"a": 5}),
    "deviation of tokens": (linear(lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1)), {"a": 5}),
    "product and extremes of tokens": (
        linear(lambda x: x.prod(1) + x.amax(1) + x.amin(1) + x.max(1)[0] + x.min(1)[0] + x.logsumexp(1)),
        {"a": 5},
    ),
    "largest of no negative": (
        linear(lambda x: x * (x.relu().amax(-1, keepdim=True) + F.relu(x).max(-1, keepdim=True)[0])),
        {"a": 5},
    ),
    "channel attention": (
        (
            {"a": nn.Conv2d(3, 6, 1), "s": nn.Conv2d(2, 1, 3, padding=1), "b": nn.Conv2d(6, 4, 1)},
            lambda m, x: (
                lambda y: m.b(y * m.s(torch.cat([y.mean(1, keepdim=True), y.max(1, keepdim=True)[0]], 1)).sigmoid())
            )(F.relu(m.a(x)) * 0.5),
            IMAGE,
        ),
        {"a": 6},
    ),
    "counted": (linear(lambda x: x * x.relu().count_nonzero(-1)[..., None]), {"a": 5}),
    "any": (linear(lambda x: x * (x.relu().bool()).any(-1, keepdim=True)), {"a": 5}),
    "instance norm without weights": (
        (
            {"a": nn.Conv2d(3, 6, 1), "n": nn.InstanceNorm2d(6), "b": nn.Conv2d(6, 4, 1)},
            lambda m, x: (lambda y: m.b(y) * y.sum(1, keepdim=True))(m.n(m.a(x))),
            IMAGE,
        ),
        {"a": 6},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str, tools: Any) -> None:
    (parts, forward, example), axes = CASES[name]
    graph = tools.prove(tools.Net(forward, **parts), example)
    assert tools.prunable(graph) == axes
    assert not graph.notes


# Each case: (parts, forward, example), words of the reason why dim 0 of a.weight is frozen.
FROZEN: dict[str, tuple[Any, str]] = {
    "norm of ones": (linear(lambda x: F.normalize(x.sigmoid(), dim=-1)), "a norm is taken over it"),
    "smallest entry": (
        linear(lambda x: x + torch.linalg.vector_norm(x, ord=-1, dim=-1, keepdim=True)),
        "it is reduced in a way",
    ),
    "mean of ones": (linear(lambda x: x + x.sigmoid().mean(-1, keepdim=True)), "it is summed up and what is removed"),
    "deviation": (linear(lambda x: x / x.std(-1, keepdim=True)), "it is reduced in a way"),
    "moments": (linear(lambda x: x - torch.var_mean(x, -1, keepdim=True)[1]), "it is reduced in a way"),
    "product": (linear(lambda x: x + x.prod(-1, keepdim=True)), "it is reduced in a way"),
    "log of a sum": (linear(lambda x: x + x.logsumexp(-1, keepdim=True)), "it is reduced in a way"),
    "minimum": (linear(lambda x: x + x.relu().amin(-1, keepdim=True)), "it is reduced in a way"),
    "maximum of any sign": (linear(lambda x: x + x.tanh().amax(-1, keepdim=True)), "a maximum is taken over it"),
    "maximum after a removed one": (linear(lambda x: x + x.exp().amax(-1, keepdim=True)), "a maximum is taken over it"),
    "place of the maximum": (
        linear(lambda x: x + x.relu().max(-1, keepdim=True)[1]),
        "a maximum is taken over it",
    ),
    "all": (linear(lambda x: x * (x > -1).all(-1, keepdim=True)), "it is reduced in a way"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen(name: str, tools: Any) -> None:
    (parts, forward, example), words = FROZEN[name]
    graph = tools.prove(tools.Net(forward, **parts), example)
    assert words in tools.why(graph, "a.weight", 0)


def test_a_mean_keeps_its_divisor_beside_a_dynamic_factor(tools: Any) -> None:
    """Over samples and channels at once: the samples that are not known yet cancel."""
    model = tools.Net(lambda m, x: m.b(m.a(x)) * m.a(x).flatten().mean(), a=nn.Linear(6, 4), b=nn.Linear(4, 2))
    graph = tools.prove(model, TOKENS)
    assert tools.prunable(graph) == {"a": 4}


def test_a_standardised_network_is_left_as_it_was(tools: Any) -> None:
    model = tools.randomise(tools.Net(two, a=STANDARDISED["gain"](3, 6), b=STANDARDISED["gain"](6, 4)))
    before = copy.deepcopy(model.state_dict())
    tools.prove(model, IMAGE, eager=False)
    tools.randomise(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
