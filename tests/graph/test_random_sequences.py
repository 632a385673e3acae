"""Random networks over sequences: attention in its spellings, recurrent layers, embeddings, experts, normalisations."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from paretoprune import graph as graphs
from paretoprune.core.plan import Plan
from paretoprune.graph import TracedGraph
from random_cases import PLANS, refused, sampled

VOCABULARY, LENGTH = 11, 5


def apply_rope(x: torch.Tensor, table: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """x: (…, length, 2·pairs), table: (length, pairs)."""
    if interleaved:
        even, odd = x[..., ::2], x[..., 1::2]
        turned = torch.stack((even * table.cos() - odd * table.sin(), even * table.sin() + odd * table.cos()), -1)
        return turned.flatten(-2)
    whole = torch.cat([table, table], -1)
    left, right = x.chunk(2, -1)
    return x * whole.cos() + torch.cat((-right, left), -1) * whole.sin()


@dataclass(frozen=True)
class Style:
    """How one attention layer is written."""

    groups: int
    repeat: int
    size: int
    fused: str
    product: str
    expansion: str
    rope: str
    norm: bool
    bias: bool


class Attention(nn.Module):
    def __init__(self, width: int, style: Style):
        super().__init__()
        self.style = style
        heads, kv, size = style.groups * style.repeat, style.groups, style.size
        if style.fused:
            self.qkv = nn.Linear(width, 3 * heads * size)
        else:
            self.q, self.k = nn.Linear(width, heads * size), nn.Linear(width, kv * size)
            self.v = nn.Linear(width, kv * size)
        self.o = nn.Linear(heads * size, width)
        self.heads = heads
        if style.norm:
            self.q_norm, self.k_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        if style.rope:
            self.register_buffer("frequency", torch.rand(size // 2))
        if style.bias:
            self.table = nn.Embedding(2 * LENGTH, heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self._projected(x)
        if self.style.norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.style.rope:
            table = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * self.frequency[None]
            q, k = (apply_rope(t, table, self.style.rope == "interleaved") for t in (q, k))
        y = self._attend(q, *self._expanded(k, v))
        return self.o(y.transpose(1, 2).reshape(*x.shape[:2], -1))

    def _projected(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        b, t, s = x.shape[0], x.shape[1], self.style
        if s.fused == "split":
            parts = self.qkv(x).split(self.heads * s.size, -1)
        elif s.fused == "unbind":
            return self.qkv(x).view(b, t, 3, self.heads, s.size).permute(2, 0, 3, 1, 4).unbind(0)
        elif s.fused == "per head":
            return tuple(p.transpose(1, 2) for p in self.qkv(x).view(b, t, self.heads, 3 * s.size).chunk(3, -1))
        else:
            parts = (self.q(x), self.k(x), self.v(x))
        return tuple(p.view(b, t, -1, s.size).transpose(1, 2) for p in parts)

    def _expanded(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        s = self.style
        if s.fused or s.repeat == 1 or s.expansion == "native":
            return k, v
        if s.expansion == "interleave":
            return tuple(t.repeat_interleave(s.repeat, 1) for t in (k, v))
        return tuple(
            t[:, :, None]
            .expand(t.shape[0], s.groups, s.repeat, t.shape[2], s.size)
            .reshape(t.shape[0], self.heads, t.shape[2], s.size)
            for t in (k, v)
        )

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        s, length = self.style, q.shape[2]
        mask = None
        if s.bias:
            at = torch.arange(length)[:, None] - torch.arange(length)[None] + LENGTH
            mask = self.table(at).permute(2, 0, 1)[None]
        native = s.expansion == "native" and s.repeat > 1 and not s.fused
        if s.product == "fused" or native:
            causal = mask is None
            return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=native)
        if s.product == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(s.size)
        else:
            scores = (q @ k.transpose(-2, -1)) * s.size**-0.5
        scores = scores if mask is None else scores + mask
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -1e4)
        weights = scores.softmax(-1)
        return torch.einsum("bhqk,bhkd->bhqd", weights, v) if s.product == "einsum" else weights @ v


class RMS(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class FeedForward(nn.Module):
    def __init__(self, width: int, n: int):
        super().__init__()
        self.n, inner = n, 4 + n
        self.up = nn.Linear(width, 2 * inner if n % 3 else inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        if self.n % 3 == 1:
            gate, y = y.chunk(2, -1)
            y = F.silu(gate) * y
        else:
            y = F.glu(y, -1) if self.n % 3 == 2 else F.gelu(y)
        return self.down(y)


class Experts(nn.Module):
    """Every expert is asked; a softmax weighs their answers."""

    def __init__(self, width: int, n: int):
        super().__init__()
        self.n = n
        self.gate = nn.Linear(width, 3)
        self.up = nn.Parameter(torch.randn(3, width, 4 + n))
        self.down = nn.Parameter(torch.randn(3, 4 + n, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.sigmoid(self.gate(x)) if self.n % 2 else self.gate(x).softmax(-1)
        hidden = F.relu(torch.einsum("btd,edf->btef", x, self.up))
        return (torch.einsum("btef,efd->bted", hidden, self.down) * weights[..., None]).sum(2)


class Recurrent(nn.Module):
    def __init__(self, width: int, n: int):
        super().__init__()
        kind = (nn.LSTM, nn.GRU, nn.RNN)[n % 3]
        extra: dict[str, Any] = {"proj_size": 2} if kind is nn.LSTM and n > 3 else {}
        self.rnn = kind(width, 3 + n, num_layers=1 + n % 2, bidirectional=n in (1, 2, 5), batch_first=True, **extra)
        self.out = nn.Linear((2 if n in (1, 2, 5) else 1) * (2 if extra else 3 + n), width)
        self.last = n % 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, state = self.rnn(x)
        state = state[0] if isinstance(state, tuple) else state
        return self.out(y) + (state.mean(0)[:, None].mean(-1, keepdim=True) if self.last else 0)


class Mixing(nn.Module):
    """Depthwise and pointwise convolution along the sequence."""

    def __init__(self, width: int, n: int):
        super().__init__()
        self.n = n
        self.deep = nn.Conv1d(width, width, 3, padding=1, groups=width)
        self.wide = nn.Conv1d(width, 2 * width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.glu(self.wide(self.deep(x.transpose(1, 2))), 1)
        if self.n % 2:
            y = torch.cumsum(y, -1).roll(1, -1)
        return y.transpose(1, 2)


class Standard(nn.Module):
    """nn.MultiheadAttention."""

    def __init__(self, width: int, n: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 1 + n % 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Gate(nn.Module):
    """Squeeze, excite, and scale by a learnt vector."""

    def __init__(self, width: int, n: int):
        super().__init__()
        self.down, self.up, self.scale = (
            nn.Linear(width, 2 + n),
            nn.Linear(2 + n, width),
            nn.Parameter(torch.rand(width)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean(1)))))[:, None] * self.scale


LAYERS: dict[str, Any] = {
    "ffn": FeedForward,
    "experts": Experts,
    "rnn": Recurrent,
    "mixing": Mixing,
    "standard": Standard,
    "gate": Gate,
    "layer norm": lambda width, n: nn.LayerNorm(width),
    "rms": lambda width, n: RMS(width),
    "rms norm": lambda width, n: nn.RMSNorm(width),
}


class SequenceNet(nn.Module):
    def __init__(self, blocks: list[tuple[str, Any, bool]], width: int, tokens: bool, tied: bool):
        super().__init__()
        self.tokens = tokens
        self.stem = nn.Embedding(VOCABULARY, width) if tokens else nn.Linear(6, width)
        self.position = nn.Parameter(torch.randn(LENGTH, width))
        self.layers = nn.ModuleList(
            Attention(width, n) if kind == "attention" else LAYERS[kind](width, n) for kind, n, _ in blocks
        )
        self.skips = [skip and kind not in ("layer norm", "rms", "rms norm") for kind, _, skip in blocks]
        self.head = nn.Linear(width, VOCABULARY if tokens else 4)
        if tokens and tied:
            self.head.weight = self.stem.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x) + self.position[: x.shape[1]]
        for layer, skip in zip(self.layers, self.skips, strict=True):
            x = x + layer(x) if skip else layer(x)
        return self.head(x)


@st.composite
def styles(draw: st.DrawFn) -> Style:
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    fused = pick("", "", "split", "unbind", "per head")
    return Style(
        groups=draw(st.integers(1, 3)),
        repeat=1 if fused else draw(st.integers(1, 3)),
        size=2 * draw(st.integers(1, 3)),
        fused=fused,
        product=pick("fused", "matmul", "einsum"),
        expansion=pick("expand", "interleave", "native"),
        rope=pick("", "halves", "interleaved"),
        norm=draw(st.booleans()),
        bias=draw(st.booleans()),
    )


@st.composite
def sequence_networks(draw: st.DrawFn) -> SequenceNet:
    blocks = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("attention", "attention", *LAYERS)))
        blocks.append((kind, draw(styles()) if kind == "attention" else draw(st.integers(0, 5)), draw(st.booleans())))
    return SequenceNet(blocks, 2 * draw(st.integers(2, 5)), tokens=draw(st.booleans()), tied=draw(st.booleans()))


def some_plan(graph: TracedGraph, seed: int) -> Plan:
    rng = np.random.default_rng(seed)
    kept = {}
    for axis in graph.axes:
        if axis.prunable and rng.random() < 0.8:
            # A layer norm over one position gives its bias whatever it is given, which would prove nothing.
            count = int(rng.integers(min(2, axis.size), axis.size + 1))
            kept[axis.id] = tuple(sorted(rng.choice(axis.size, count, replace=False).tolist()))
    return Plan(kept, graph.fingerprint)


def run_network(model: SequenceNet, seed: int, tools: Any) -> None:
    """Trace once; every plan is a case."""
    tools.randomise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    x = (
        torch.randint(VOCABULARY, (2, LENGTH), generator=generator)
        if model.tokens
        else torch.randn(2, LENGTH, 6, generator=generator)
    )
    before = copy.deepcopy(model.state_dict())
    graph = graphs.trace(model, x)
    unruled = [note for note in graph.notes if "no rule" in note]
    assert not unruled
    for number in range(PLANS):
        run_case(model, graph, some_plan(graph, PLANS * seed + number), x, again=not number and seed % 4 == 0)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def run_case(model: SequenceNet, graph: TracedGraph, plan: Plan, x: torch.Tensor, *, again: bool) -> None:
    """`again`: the pruned network is captured in its turn, which takes as long as all the rest."""
    cut = graphs.cut(graph, Plan.from_json(json.loads(plan.dumps())))
    if refused(graph, plan, cut):
        return
    module = cut.program.module
    widths = {name: len(kept) for name, kept in plan.kept.items()}
    assert graph.parameters(widths) == sum(p.numel() for p in module.parameters())
    assert not again or graph.macs(widths) == graphs.trace(module, x).macs()
    rebuilt, reason = graphs.rebuild(model, graph, cut)
    assert (rebuilt is None) == bool(reason)
    if rebuilt is not None:
        assert type(rebuilt) is SequenceNet
        torch.testing.assert_close(rebuilt(x), module(x), rtol=1e-3, atol=1e-4)


@sampled
@given(sequence_networks(), st.integers(0, 999))
def test_random_sequences(tools: Any, model: SequenceNet, seed: int) -> None:
    run_network(model, seed, tools)
