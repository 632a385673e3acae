"""Shuffles, patches, pooling, resampling, running sums and Fourier transforms, proved on small networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paretoprune import graph as graphs

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ROW = torch.randn(2, 6, generator=torch.Generator().manual_seed(2))
TOKENS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(3))


def conv(i: int, o: int, k: int = 3, **kw: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **kw)


def between(into: int, out: int, function: Callable[[torch.Tensor], torch.Tensor], **more: Any) -> Any:
    """conv a (3 → into), a function of its output, conv b (out → 4)."""
    return {"a": conv(3, into), "b": conv(out, 4), **more}, lambda m, x: m.b(function(m.a(x))), IMAGE


def tokens(into: int, out: int, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """linear a (6 → into) on five tokens, a function, linear b (out → 4)."""
    return {"a": nn.Linear(6, into), "b": nn.Linear(out, 4)}, lambda m, x: m.b(function(m.a(x))), TOKENS


def grid(x: torch.Tensor) -> torch.Tensor:
    turn = torch.tensor([[0.75, 0.25, 0.125], [-0.25, 0.875, 0.0]], dtype=x.dtype)
    places = F.affine_grid(turn.expand(x.shape[0], 2, 3), [x.shape[0], 1, 8, 8], align_corners=False)
    return F.grid_sample(x, places, align_corners=False)


def pooled_and_back(x: torch.Tensor) -> torch.Tensor:
    values, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(values * 2, places, 2)


def spectrogram(x: torch.Tensor) -> torch.Tensor:
    window = torch.tensor([0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25], dtype=x.dtype)
    return torch.stft(x, 8, hop_length=4, window=window, center=False, return_complex=True).abs().mT


# Each case: (parts, forward, example), the prunable axes with their sizes.
CASES: dict[str, tuple[Any, dict[str, int]]] = {
    "pixel shuffle": (between(12, 3, lambda x: F.pixel_shuffle(x, 2)), {"a": 3}),
    "pixel unshuffle": (between(5, 20, lambda x: F.pixel_unshuffle(x, 2)), {"a": 5}),
    "native channel shuffle": (between(12, 12, lambda x: F.channel_shuffle(x, 3)), {"a": 3, "a#2": 4}),
    "im2col": (between(3, 12, lambda x: F.unfold(x, 2, stride=2).unflatten(-1, (4, 4))), {"a": 3}),
    "fold of patches": (between(3, 3, lambda x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1)), {"a": 3}),
    "windows of space": (between(5, 5, lambda x: x.unfold(2, 3, 1).mean(-1)), {"a": 5}),
    "windows of channels": (tokens(12, 4, lambda x: x.unfold(2, 3, 3).sum(-1)), {"a": 4}),
    "rolled in space": (between(5, 5, lambda x: torch.roll(x, (1, 2), (2, 3))), {"a": 5}),
    "flipped in space": (between(5, 5, lambda x: x.flip(-1)), {"a": 5}),
    "turned": (between(5, 5, lambda x: torch.rot90(x, 1, (2, 3))), {"a": 5}),
    "triangle of space": (between(5, 5, lambda x: x.tril() + x.triu(1)), {"a": 5}),
    "diagonal of space": (between(5, 5, lambda x: x.diagonal(0, 2, 3)[..., None]), {"a": 5}),
    "difference of space": (between(5, 5, lambda x: x.diff(dim=2)), {"a": 5}),
    "gated linear unit": (between(10, 5, lambda x: F.glu(x, 1)), {"a": 5}),
    "glu of tokens": (tokens(8, 4, F.glu), {"a": 4}),
    "tiled": (tokens(4, 12, lambda x: x.tile(1, 3)), {"a": 4, "b#2": 3}),
    "copies of one": (
        (
            {"a": nn.Linear(6, 5), "s": nn.Parameter(torch.randn(1, 1, 1)), "b": nn.Linear(5, 4)},
            lambda m, x: m.b(m.a(x) * m.s.repeat(1, 1, 5) + m.s.tile(5)),
            TOKENS,
        ),
        {"a": 5},
    ),
    "narrow": (tokens(7, 4, lambda x: x.narrow(2, 1, 4)), {"a": 4, "a#2": 2}),
    "tensor split": (
        tokens(7, 7, lambda x: torch.cat([p.relu() for p in torch.tensor_split(x, 3, 2)], -1)),
        {"a": 3, "a#2": 2, "a#3": 2},
    ),
    "split at": (
        between(7, 3, lambda x: torch.tensor_split(x, (4,), 1)[1]),
        {"a": 4, "a#2": 3},
    ),
    "horizontal split": (between(6, 3, lambda x: torch.hsplit(x, 2)[0] * torch.hsplit(x, 2)[1]), {"a": 3}),
    "unsafe chunk": (between(6, 3, lambda x: torch.add(*torch.unsafe_chunk(x, 2, 1))), {"a": 3}),
    "unsafe split": (between(6, 3, lambda x: torch.add(*torch.unsafe_split(x, 3, 1))), {"a": 3}),
    "edges": (
        between(
            5,
            5,
            lambda x: (
                F.pad(x, (1, 1, 1, 1), mode="reflect")
                + F.pad(x, (1, 1, 1, 1), mode="replicate")
                + F.pad(x, (1, 1, 1, 1), mode="circular")
                + torch.ops.aten.reflection_pad2d(x, [1, 1, 1, 1])
                + torch.ops.aten.replication_pad2d(x, [1, 1, 1, 1])
            ),
        ),
        {"a": 5},
    ),
    "power pooling": (between(5, 5, lambda x: F.lp_pool2d(x.relu() + 0.1, 2.0, 2)), {"a": 5}),
    "adaptive maxima": (
        between(5, 5, lambda x: F.adaptive_max_pool1d(x.flatten(2), 9).unflatten(-1, (3, 3))),
        {"a": 5},
    ),
    "volumes": (
        between(
            5, 5, lambda x: F.adaptive_max_pool3d(F.interpolate(x[:, :, None], scale_factor=2.0), (1, 4, 4)).squeeze(2)
        ),
        {"a": 5},
    ),
    "unpooled": (between(5, 5, pooled_and_back), {"a": 5}),
    "sampled on a grid": (between(5, 5, grid), {"a": 5}),
    **{
        f"upsampled {mode}": (between(5, 5, lambda x, m=mode: F.interpolate(x, size=(9, 7), mode=m)), {"a": 5})
        for mode in ("nearest", "bilinear", "bicubic", "nearest-exact", "area")
    },
    "upsampled smoothly": (
        between(5, 5, lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear", antialias=True)),
        {"a": 5},
    ),
    "upsampled volume": (
        between(5, 5, lambda x: F.interpolate(x[:, :, None], scale_factor=2.0, mode="trilinear").mean(2)),
        {"a": 5},
    ),
    "upsampled line": (
        between(5, 5, lambda x: F.interpolate(x.flatten(2), size=81, mode="linear").unflatten(-1, (9, 9))),
        {"a": 5},
    ),
    "running sum over channels": (tokens(5, 5, lambda x: x.cumsum(-1)), {"a": 5}),
    "running over tokens": (
        tokens(5, 5, lambda x: x.cumsum(1) + x.cumprod(1) + x.logcumsumexp(1) + x.cummax(1)[0] + x.cummin(1)[0]),
        {"a": 5},
    ),
    "Fourier of space": (between(5, 5, lambda x: torch.fft.ifft2(torch.fft.fft2(x) * 2).real), {"a": 5}),
    "Fourier of a row": (
        between(5, 5, lambda x: torch.fft.irfftn(torch.fft.rfftn(x, s=(8, 8), norm="ortho"), s=(8, 8))),
        {"a": 5},
    ),
    "Fourier of tokens": (tokens(5, 5, lambda x: torch.fft.fft(x, dim=1).abs()), {"a": 5}),
    "complex pairs": (
        tokens(6, 6, lambda x: torch.view_as_real(torch.complex(x, x.relu()) * torch.polar(x.abs(), x)).sum(-1)),
        {"a": 6},
    ),
    "rotated pairs": (
        tokens(6, 6, lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (3, 2))) * 1j).flatten(-2)),
        {"a": 3},
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
    "rolled channels": (between(4, 4, lambda x: torch.roll(x, 1, 1)), "its positions are moved along it"),
    "flipped channels": (between(4, 4, lambda x: x.flip(1)), "its positions are moved along it"),
    "mirrored": (between(4, 4, torch.fliplr), "its positions are moved along it"),
    "turned channels": (between(8, 8, lambda x: torch.rot90(x, 2, (1, 2))), "its positions are moved along it"),
    "sliding windows": (tokens(6, 3, lambda x: x.unfold(2, 3, 1).sum(-2)), "windows slide over it"),
    "neighbours": (tokens(5, 4, lambda x: x.diff(dim=2)), "its neighbours are subtracted"),
    "running product": (tokens(5, 5, lambda x: x.cumprod(2)), "every position depends on those before it"),
    "running maximum": (tokens(5, 5, lambda x: x.cummax(2)[0]), "every position depends on those before it"),
    "running sum of ones": (
        tokens(5, 5, lambda x: x.sigmoid().cumsum(2)),
        "it is summed up along and what is removed is not zero there",
    ),
    "what a running sum leaves": (
        tokens(5, 5, lambda x: x.cumsum(2) + x.cumsum(2).sum(2, keepdim=True)),
        "it is summed up and what is removed is not zero there",
    ),
    "Fourier of channels": (tokens(5, 5, lambda x: torch.fft.fft(x).abs()), "a Fourier transform mixes"),
    "short-time Fourier": (
        tokens(16, 5, lambda x: spectrogram(x[:, 0])),
        "a Fourier transform mixes",
    ),
    "places of maxima": (
        between(5, 5, lambda x: x + F.max_pool2d(x, 8, return_indices=True)[1].to(x.dtype).sum(1, keepdim=True)),
        "it is summed up and what is removed is not zero there",
    ),
    "neighbouring channels": (between(5, 5, lambda x: F.local_response_norm(x, 3)), "its positions are spatial"),
    "padded with ones": (tokens(4, 6, lambda x: F.pad(x, (1, 1), value=1.0)), "it is padded with something else"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen(name: str, tools: Any) -> None:
    (parts, forward, example), words = FROZEN[name]
    graph = tools.prove(tools.Net(forward, **parts), example)
    assert words in tools.why(graph, "a.weight", 0)


def noise(m: Any, x: torch.Tensor) -> torch.Tensor:
    mean, spread = m.a(x).chunk(2, -1)
    return m.b(mean + torch.randn_like(spread) * spread)


def test_random_numbers_in_eval_mode_are_frozen_and_said(tools: Any) -> None:
    model = tools.Net(noise, a=nn.Linear(6, 8), b=nn.Linear(4, 6), c=nn.Linear(1, 1))
    graph = graphs.trace(tools.randomise(model), ROW)
    assert any("random outputs in eval mode" in n for n in graph.notes)
    assert "random numbers are drawn" in tools.why(graph, "a.weight", 0)


def test_random_numbers_do_not_disturb_the_proof(tools: Any) -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        mean, spread = m.c(F.relu(m.a(x))).chunk(2, -1)
        return m.b(mean + torch.randn_like(spread) * spread)

    model = tools.Net(forward, a=nn.Linear(6, 5), b=nn.Linear(4, 6), c=nn.Linear(5, 8))
    assert tools.prunable(tools.prove(model, ROW, eager=False)) == {"a": 5}


@pytest.mark.parametrize("output", ["complex", "real"])
def test_complex_weights_stay_and_the_rest_is_pruned(output: str, tools: Any) -> None:
    """A Fourier operator layer: learned complex weights over the modes of every channel."""

    def forward(m: Any, x: torch.Tensor) -> Any:
        modes = torch.fft.rfft2(m.a(x)) * m.w
        return torch.fft.rfft2(m.b(x)) if output == "complex" else m.b(m.c(torch.fft.irfft2(modes)))

    weights = torch.randn(8, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(torch.complex128)
    parts = {"w": nn.Parameter(weights.to(torch.complex64)), "a": conv(3, 5), "c": conv(5, 6), "b": conv(6, 3)}
    if output == "complex":
        parts = {"a": conv(3, 7), "b": nn.Sequential(conv(3, 5), nn.ReLU(), conv(5, 2))}
        graph = tools.prove(tools.Net(lambda m, x: torch.fft.rfft2(m.b(x)), **parts), IMAGE, eager=False)
        assert tools.prunable(graph) == {"b.0": 5}
    else:
        graph = tools.prove(tools.Net(forward, **parts), IMAGE, eager=False)
        assert tools.prunable(graph) == {"a": 5, "c": 6}
