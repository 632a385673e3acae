"""Attention in every spelling: heads, head sizes and rotary pairs are pruned exactly, and scales never change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paretoprune import graph as graphs
from paretoprune.core.plan import Plan
from paretoprune.graph.algebra import Atom, Expr, Product, Sum

TOKENS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
HEADS, SIZE = 4, 3


def heads(x: torch.Tensor, n: int = HEADS) -> torch.Tensor:
    return x.view(x.size(0), x.size(1), n, -1).transpose(1, 2)


def merged(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)


def projections(q: int = 12, k: int = 12, v: int = 8, out: int = 8) -> dict[str, Any]:
    return {"q": nn.Linear(6, q), "k": nn.Linear(6, k), "v": nn.Linear(6, v), "o": nn.Linear(out, 3)}


def fused(m: Any, x: torch.Tensor, *, kv: int = HEADS, **options: Any) -> torch.Tensor:
    q, k, v = heads(m.q(x)), heads(m.k(x), kv), heads(m.v(x), kv)
    return m.o(merged(F.scaled_dot_product_attention(q, k, v, **options)))


def spelled(m: Any, x: torch.Tensor, mask: Any = None) -> torch.Tensor:
    q, k, v = heads(m.q(x)), heads(m.k(x)), heads(m.v(x))
    scores = q @ k.transpose(-1, -2) / math.sqrt(SIZE)
    scores = scores if mask is None else mask(scores)
    return m.o(merged(scores.softmax(-1) @ v))


def causal(x: torch.Tensor) -> torch.Tensor:
    return torch.full((x.size(1), x.size(1)), float("-inf")).triu(1)


def packed(m: Any, x: torch.Tensor, layout: Any) -> torch.Tensor:
    q, k, v = layout(m.qkv(x))
    return m.o(merged(F.scaled_dot_product_attention(q, k, v)))


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    return torch.cat((-x[..., x.size(-1) // 2 :], x[..., : x.size(-1) // 2]), -1)


def rotate_chunks(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


def rotate_strided(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def rotate_viewed(x: torch.Tensor) -> torch.Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((-b, a), -1).reshape(x.shape)


def angles(m: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.size(1))[:, None] * m.frequencies


def rotary(m: Any, x: torch.Tensor, turn: Any, *, beside: bool) -> torch.Tensor:
    """`beside`: the pair is (i, i + 1), otherwise (i, i + half)."""
    phase = angles(m, x)
    phase = phase.repeat_interleave(2, -1) if beside else torch.cat((phase, phase), -1)
    q, k, v = heads(m.q(x)), heads(m.k(x)), heads(m.v(x))
    q, k = (t * phase.cos() + turn(t) * phase.sin() for t in (q, k))
    return m.o(merged(F.scaled_dot_product_attention(q, k, v)))


def complex_rotary(m: Any, x: torch.Tensor, *, table: bool) -> torch.Tensor:
    turns = m.turns if table else torch.polar(torch.ones(x.size(1), 2), angles(m, x).float())
    q, k, v = heads(m.q(x)), heads(m.k(x)), heads(m.v(x))
    q, k = (torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2))) * turns).flatten(-2) for t in (q, k))
    return m.o(merged(F.scaled_dot_product_attention(q, k, v)))


def rotary_parts(size: int = 4) -> dict[str, Any]:
    return {**projections(HEADS * size, HEADS * size), "frequencies": torch.tensor([1.0, 0.3])}


def grouped_copies(x: torch.Tensor, how: str) -> torch.Tensor:
    """Two key heads for four query heads."""
    if how == "interleave":
        return x.repeat_interleave(2, 1)
    return x[:, :, None].expand(-1, -1, 2, -1, -1).reshape(x.size(0), 4, x.size(2), -1)


def grouped(m: Any, x: torch.Tensor, how: str) -> torch.Tensor:
    q, k, v = heads(m.q(x)), heads(m.k(x), 2), heads(m.v(x), 2)
    k, v = grouped_copies(k, how), grouped_copies(v, how)
    return m.o(merged((q @ k.mT / math.sqrt(SIZE)).softmax(-1) @ v))


def alibi(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Slopes per head times positions, added by baddbmm over merged samples and heads, as in BLOOM."""
    b, n = x.size(0), x.size(1)
    slopes = 2.0 ** -(torch.arange(HEADS) + 1)
    bias = (slopes[None, :, None] * torch.arange(n)).expand(b, -1, -1).reshape(b * HEADS, 1, n).type_as(x)
    q, k, v = (heads(p(x)).reshape(b * HEADS, n, -1) for p in (m.q, m.k, m.v))
    scores = bias.baddbmm(q, k.transpose(1, 2), beta=1.0, alpha=1 / math.sqrt(SIZE))
    return m.o(merged((scores.softmax(-1) @ v).view(b, HEADS, n, -1)))


def relative(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A table with a column per head, looked up by distance, as in Swin and T5."""
    n = x.size(1)
    distance = torch.arange(n)[:, None] - torch.arange(n) + n - 1
    bias = m.table[distance.view(-1)].view(n, n, -1).permute(2, 0, 1).unsqueeze(0)
    return spelled(m, x, lambda s: s + bias)


def bucketed(m: Any, x: torch.Tensor) -> torch.Tensor:
    n = x.size(1)
    distance = torch.bucketize((torch.arange(n)[:, None] - torch.arange(n)).float(), torch.tensor([-2.0, 0.0, 1.0]))
    return spelled(m, x, lambda s: s + m.table(distance).permute(2, 0, 1)[None])


def normed(m: Any, x: torch.Tensor) -> torch.Tensor:
    q, k, v = m.nq(heads(m.q(x))), m.nk(heads(m.k(x))), heads(m.v(x))
    return m.o(merged(F.scaled_dot_product_attention(q, k, v, scale=1.0)))


def unit_length(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Cosine attention with a temperature per head (Swin v2)."""
    q, k, v = F.normalize(heads(m.q(x)), dim=-1), F.normalize(heads(m.k(x)), dim=-1), heads(m.v(x))
    return m.o(merged((q @ k.mT * m.scale.clamp(max=4.6).exp()).softmax(-1) @ v))


def across_channels(m: Any, x: torch.Tensor) -> torch.Tensor:
    """The softmax runs over the head's own channels (XCiT), which therefore stay."""
    q, k, v = (heads(p(x)).transpose(-1, -2) for p in (m.q, m.k, m.v))
    return m.o(merged(((q @ k.mT).softmax(-1) @ v).transpose(-1, -2)))


def einsums(m: Any, x: torch.Tensor) -> torch.Tensor:
    q, k, v = (p(x).unflatten(-1, (HEADS, -1)) for p in (m.q, m.k, m.v))
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(SIZE)).softmax(-1)
    return m.o(torch.einsum("bhqk,bkhe->bqhe", weights, v).flatten(2))


def linear_attention(m: Any, x: torch.Tensor) -> torch.Tensor:
    """No softmax over keys: d is summed over between activations that are zero there, as relu keeps zeros."""
    q, k, v = F.relu(heads(m.q(x))), F.relu(heads(m.k(x))), heads(m.v(x))
    return m.o(merged(q @ (k.mT @ v)))


def gap(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A query that is a parameter (attention pooling)."""
    q = m.query.expand(x.size(0), -1, -1)
    return m.o(merged(F.scaled_dot_product_attention(heads(q), heads(m.k(x)), heads(m.v(x)))))


BOTH = {"q": HEADS, "q#2": SIZE, "v": 2}

CASES: dict[str, tuple[dict[str, Any], Any, dict[str, int]]] = {
    "fused": (projections(), fused, BOTH),
    "fused with a scale": (projections(), lambda m, x: fused(m, x, scale=0.7), BOTH),
    "fused causal": (projections(), lambda m, x: fused(m, x, is_causal=True), BOTH),
    "fused with a mask": (projections(), lambda m, x: fused(m, x, attn_mask=causal(x)), BOTH),
    "fused with a mask per sample": (
        projections(),
        lambda m, x: fused(m, x, attn_mask=(x[..., :1] > -9).unsqueeze(1).transpose(-1, -2)),
        BOTH,
    ),
    "fused with a bias per head": (
        {**projections(), "bias": nn.Parameter(torch.randn(HEADS, 5, 5))},
        lambda m, x: fused(m, x, attn_mask=m.bias),
        BOTH,
    ),
    "fused grouped": (
        projections(k=6, v=4),
        lambda m, x: fused(m, x, kv=2, enable_gqa=True),
        {"q": 2, "q#2": 2, "q#3": 3, "v": 2},
    ),
    "fused multi-query": (
        projections(k=3, v=2),
        lambda m, x: fused(m, x, kv=1, enable_gqa=True),
        {"q": 4, "q#2": 3, "v": 2},
    ),
    "fused without heads": (
        projections(),
        lambda m, x: m.o(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x))),
        {"q": 12, "v": 8},
    ),
    "spelled out": (projections(), spelled, BOTH),
    "spelled out causal": (
        projections(),
        lambda m, x: spelled(m, x, lambda s: s.masked_fill(torch.ones(5, 5).tril() == 0, float("-inf"))),
        BOTH,
    ),
    "spelled out with where": (
        projections(),
        lambda m, x: spelled(m, x, lambda s: torch.where(torch.ones(5, 5).tril().bool(), s, -1e9)),
        BOTH,
    ),
    "copies of key heads": (
        projections(k=6, v=4),
        lambda m, x: grouped(m, x, "expand"),
        {"q": 2, "q#2": 2, "q#3": 3, "v": 2},
    ),
    "key heads interleaved": (
        projections(k=6, v=4),
        lambda m, x: grouped(m, x, "interleave"),
        {"q": 2, "q#2": 2, "q#3": 3, "v": 2},
    ),
    "one layer, chunks": (
        {"qkv": nn.Linear(6, 36), "o": nn.Linear(12, 3)},
        lambda m, x: packed(m, x, lambda y: [heads(t) for t in y.chunk(3, -1)]),
        {"qkv": 4, "qkv#2": 3, "qkv#3": 3},
    ),
    "one layer, uneven split": (
        {"qkv": nn.Linear(6, 32), "o": nn.Linear(8, 3)},
        lambda m, x: packed(m, x, lambda y: [heads(t) for t in y.split((12, 12, 8), -1)]),
        {"qkv": 4, "qkv#2": 3, "qkv#3": 2},
    ),
    "one layer, 3 outermost": (
        {"qkv": nn.Linear(6, 36), "o": nn.Linear(12, 3)},
        lambda m, x: packed(m, x, lambda y: y.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)),
        {"qkv#2": 4, "qkv#3": 3},
    ),
    "one layer, 3 in the middle": (
        {"qkv": nn.Linear(6, 36), "o": nn.Linear(12, 3)},
        lambda m, x: packed(
            m, x, lambda y: [y.view(x.size(0), 5, HEADS, 3, SIZE)[..., i, :].transpose(1, 2) for i in range(3)]
        ),
        {"qkv": 4, "qkv#3": 3},
    ),
    "one layer, 3 innermost": (
        {"qkv": nn.Linear(6, 36), "o": nn.Linear(12, 3)},
        lambda m, x: packed(m, x, lambda y: y.view(x.size(0), 5, HEADS, SIZE, 3).transpose(1, 2).unbind(-1)),
        {"qkv": 4, "qkv#2": 3},
    ),
    "one layer, chunks per head": (
        {"qkv": nn.Linear(6, 36), "o": nn.Linear(12, 3)},
        lambda m, x: packed(m, x, lambda y: y.view(x.size(0), 5, HEADS, 9).transpose(1, 2).chunk(3, -1)),
        {"qkv": 4, "qkv#2": 3, "qkv#3": 3},
    ),
    "rotary halves": (
        rotary_parts(),
        lambda m, x: rotary(m, x, rotate_half, beside=False),
        {"q": 4, "q#2": 2, "v": 2},
    ),
    "rotary chunks": (
        rotary_parts(),
        lambda m, x: rotary(m, x, rotate_chunks, beside=False),
        {"q": 4, "q#2": 2, "v": 2},
    ),
    "rotary strided": (
        rotary_parts(),
        lambda m, x: rotary(m, x, rotate_strided, beside=True),
        {"q": 4, "q#2": 2, "v": 2},
    ),
    "rotary viewed": (
        rotary_parts(),
        lambda m, x: rotary(m, x, rotate_viewed, beside=True),
        {"q": 4, "q#2": 2, "v": 2},
    ),
    "rotary complex": (
        rotary_parts(),
        lambda m, x: complex_rotary(m, x, table=False),
        {"q": 4, "q#2": 2, "v": 2},
    ),
    "rotary complex from a table": (
        {**rotary_parts(), "turns": torch.polar(torch.ones(5, 2), torch.rand(5, 2))},
        lambda m, x: complex_rotary(m, x, table=True),
        {"q": 4, "q#2": 2, "v": 2},
    ),
    "alibi": (projections(), alibi, BOTH),
    "relative positions": (
        {**projections(), "table": nn.Parameter(torch.randn(9, HEADS))},
        relative,
        BOTH,
    ),
    "relative positions in buckets": ({**projections(), "table": nn.Embedding(4, HEADS)}, bucketed, BOTH),
    "cosine": ({**projections(), "scale": nn.Parameter(torch.rand(HEADS, 1, 1))}, unit_length, BOTH),
    "across channels": (projections(v=12, out=12), across_channels, {"q": 4, "q#2": 3}),
    "einsum": (projections(), einsums, BOTH),
    "without softmax": (projections(), linear_attention, BOTH),
    "a learned query": (
        {**projections(), "query": nn.Parameter(torch.randn(1, 2, 12))},
        gap,
        {"k": 4, "k#2": 3, "v": 2},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_pruned_equals_the_zeroed_network(name: str, tools: Any) -> None:
    parts, forward, expected = CASES[name]
    graph = tools.prove(tools.Net(forward, **parts), TOKENS)
    assert tools.prunable(graph) == expected


# -- torch's own layers ----------------------------------------------------------------------------------------------


def attend(m: Any, *sources: torch.Tensor, **options: Any) -> torch.Tensor:
    return m.o(m.m(*sources, need_weights=False, **options)[0])


def own(**options: Any) -> dict[str, Any]:
    return {
        "a": nn.Linear(6, 8),
        "m": nn.MultiheadAttention(8, 2, **{"batch_first": True, **options}),
        "o": nn.Linear(8, 3),
    }


LAYERS: dict[str, tuple[dict[str, Any], Any, dict[str, int]]] = {
    "self-attention": (
        own(),
        lambda m, x: (lambda y: attend(m, y, y, y))(m.a(x)),
        {"a": 8, "m#2": 2, "m#3": 4, "m.out_proj": 8},
    ),
    "self-attention, batch second": (
        own(batch_first=False),
        lambda m, x: (lambda y: attend(m, y, y, y))(m.a(x)),
        {"a": 8, "m#2": 2, "m#3": 4, "m.out_proj": 8},
    ),
    "with weights": (
        own(),
        lambda m, x: (lambda y: m.o(m.m(y, y, y)[0]))(m.a(x)),
        {"a": 8, "m#2": 2, "m#3": 4, "m.out_proj": 8},
    ),
    "with masks": (
        own(),
        lambda m, x: (lambda y: attend(m, y, y, y, attn_mask=causal(y) < 0, key_padding_mask=x[..., 0] > 9))(m.a(x)),
        {"a": 8, "m#2": 2, "m#3": 4, "m.out_proj": 8},
    ),
    "cross-attention": (
        {**own(), "c": nn.Linear(6, 8)},
        lambda m, x: (lambda y, z: attend(m, y, z, z))(m.a(x), m.c(x)),
        {"a": 8, "m": 2, "m#2": 4, "m.out_proj": 8},
    ),
    "other key and value widths": (
        own(kdim=6, vdim=5),
        lambda m, x: attend(m, m.a(x), x, x[..., :5]),
        {"a": 8, "m": 2, "m#2": 4, "m#3": 4, "m.out_proj": 8},
    ),
    "extra keys": (
        own(add_bias_kv=True, add_zero_attn=True),
        lambda m, x: (lambda y: attend(m, y, y, y))(m.a(x)),
        {"a": 8, "m#2": 2, "m#3": 4, "m.out_proj": 8},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_multi_head_attention(name: str, tools: Any) -> None:
    parts, forward, expected = LAYERS[name]
    graph = tools.prove(tools.Net(forward, **parts), TOKENS)
    assert tools.prunable(graph) == expected


@pytest.mark.parametrize(
    ("fast", "trained"),
    [(True, False), (False, True), *(pytest.param(v, v, marks=pytest.mark.slow) for v in (True, False))],
)
def test_encoder_layers_are_captured_operator_by_operator(trained: bool, fast: bool, tools: Any) -> None:
    """Without gradients torch takes a fused kernel, for which there is no rule and which never trains."""
    layer = nn.TransformerEncoderLayer(8, 2, 10, batch_first=True)
    model = tools.Net(
        lambda m, x: m.o(m.t(m.a(x))), a=nn.Linear(6, 8), t=nn.TransformerEncoder(layer, 1), o=nn.Linear(8, 3)
    )
    model.requires_grad_(trained)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        with torch.set_grad_enabled(trained):
            graph = tools.prove(model, TOKENS, eager=False, least=2)
        assert torch.backends.mha.get_fastpath_enabled() is fast
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert sorted(tools.prunable(graph).values()) == [2, 4, 8, 10]
    assert not any("no rule" in n for n in graph.notes)


def test_transformer_with_a_causal_mask(tools: Any) -> None:
    """nn.Transformer branches on the mask's values, which a capture cannot follow."""
    model = tools.Net(
        lambda m, x: m.o(m.t(m.a(x), m.a(x), tgt_mask=causal(x))),
        a=nn.Linear(6, 8),
        t=nn.Transformer(8, 2, 1, 1, 10, batch_first=True),
        o=nn.Linear(8, 3),
    )
    graph = graphs.trace(tools.randomise(model), TOKENS)
    axes = tools.prunable(graph)
    assert sum(size == 10 for size in axes.values()) == 2
    graphs.check(graph, Plan({name: tuple(range(size // 2)) for name, size in axes.items()}))


def test_what_eval_mode_remembers_is_no_constant(tools: Any) -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.cache = nn.Parameter(torch.randn(4, 8)), {}

        def train(self, mode: bool = True) -> Any:
            self.cache = {} if mode else self.cache
            return super().train(mode)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training or "sum" not in self.cache:
                self.cache["sum"] = self.table.sum(0)
            return x + self.cache["sum"]

    model = tools.Net(lambda m, x: m.o(m.r(m.a(x))), a=nn.Linear(6, 8), r=Remembering(), o=nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model(TOKENS)
    graph = tools.prove(model, TOKENS, eager=False)
    assert tools.prunable(graph) == {"a": 8, "r": 4}


# -- what stays the same ---------------------------------------------------------------------------------------------


def test_the_scale_stays_that_of_the_original_width(tools: Any) -> None:
    model = tools.randomise(tools.Net(fused, **projections()))
    graph = graphs.trace(model, TOKENS)
    cut = graphs.cut(graph, Plan({"q#2": (1,)}))
    node = next(n for n in cut.program.module.graph.nodes if "scaled_dot" in str(n.target))
    assert node.kwargs["scale"] == 1 / math.sqrt(SIZE)
    whole = graphs.cut(graph, Plan({"q": (1, 2)}))
    node = next(n for n in whole.program.module.graph.nodes if "scaled_dot" in str(n.target))
    assert "scale" not in node.kwargs


@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(SIZE), lambda: nn.RMSNorm(SIZE)])
def test_norms_of_queries_and_keys_take_statistics_of_what_is_kept(norm: Any, tools: Any) -> None:
    model = tools.Net(normed, **projections(), nq=norm(), nk=norm())
    graph = tools.prove(model, TOKENS, eager=False, least=2)
    assert tools.prunable(graph) == BOTH


def test_macs_of_attention(tools: Any) -> None:
    graph = graphs.trace(tools.Net(fused, **projections()), TOKENS)
    linear = 5 * 6 * (12 + 12 + 8) + 5 * 8 * 3
    assert graph.macs() == linear + HEADS * 5 * 5 * (3 + 2)
    assert graph.macs({"q": 1, "q#2": 2, "v": 1}) == 5 * 6 * (2 + 2 + 1) + 5 * 1 * 3 + 5 * 5 * (2 + 1)


# What must stay: parts, forward, parameter, dim, words.
FROZEN: dict[str, tuple[dict[str, Any], Any, str, int, str]] = {
    "a query that is not zero where it is removed": (
        projections(),
        lambda m, x: m.o(F.scaled_dot_product_attention(m.q(x).sigmoid(), m.k(x).exp(), m.v(x))),
        "q.weight",
        0,
        "against another activation",
    ),
    "heads that are averaged": (
        projections(v=2, out=2),
        lambda m, x: m.o((heads(m.q(x)) @ heads(m.k(x)).mT).softmax(-1).mean(1) @ m.v(x)),
        "q.weight",
        0,
        "it is summed up and what is removed is not zero there",
    ),
    "keys": (
        {**projections(), "k": nn.Parameter(torch.randn(7, 12)), "v": nn.Parameter(torch.randn(7, 8))},
        lambda m, x: m.o(
            F.scaled_dot_product_attention(m.q(x), m.k.expand(x.size(0), -1, -1), m.v.expand(x.size(0), -1, -1))
        ),
        "k",
        0,
        "its positions compete in a softmax",
    ),
    "causal queries": (
        {**projections(), "q": nn.Parameter(torch.randn(5, 12)), "w": nn.Parameter(torch.randn(3, 5))},
        lambda m, x: (
            m.w @ m.o(F.scaled_dot_product_attention(m.q.expand(x.size(0), -1, -1), m.k(x), m.v(x), is_causal=True))
        ),
        "q",
        0,
        "compared with those of the keys",
    ),
    "sums of an outer product with what is not zero": (
        {"a": nn.Linear(6, 4), "c": nn.Linear(6, 4), "o": nn.Linear(4, 3)},
        lambda m, x: (lambda y, s: m.o((y[..., :, None] * s[..., None, :]).sum(-1) + s * 0 + y))(
            m.a(x), m.c(x).sigmoid()
        ),
        "a.weight",
        0,
        "it is summed up and what is removed is not zero there",
    ),
    "einsum over what is not zero": (
        {"a": nn.Linear(6, 4), "c": nn.Linear(6, 4), "o": nn.Linear(5, 3)},
        lambda m, x: m.o(torch.einsum("bsd,btd->bst", m.a(x).sigmoid(), m.c(x).exp())),
        "a.weight",
        0,
        "against another activation",
    ),
    "einsum diagonal": (
        {"p": nn.Parameter(torch.randn(4, 4)), "a": nn.Linear(6, 4), "o": nn.Linear(4, 3)},
        lambda m, x: m.o(m.a(x) * torch.einsum("ii->i", m.p)),
        "a.weight",
        0,
        "its diagonal is taken",
    ),
    "a matrix added to a sum of products": (
        {"a": nn.Linear(6, 4), "c": nn.Linear(6, 4), "o": nn.Linear(5, 3)},
        lambda m, x: m.o(torch.addbmm(x.new_zeros(5, 5), m.a(x).sigmoid(), m.c(x).exp().mT)),
        "c.weight",
        0,
        "against another activation",
    ),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_with_the_reason(name: str, tools: Any) -> None:
    parts, forward, parameter, dim, words = FROZEN[name]
    graph = tools.prove(tools.Net(forward, **parts), TOKENS, eager=False)
    assert words in tools.why(graph, parameter, dim)


# -- products by labels ----------------------------------------------------------------------------------------------


def two(a: int = 4, c: int = 4, o: int = 4) -> dict[str, Any]:
    return {"a": nn.Linear(6, a), "c": nn.Linear(6, c), "o": nn.Linear(o, 3)}


PRODUCTS: dict[str, tuple[dict[str, Any], Any, dict[str, int]]] = {
    "stacked weights": (
        {"a": nn.Linear(6, 8), "w": nn.Parameter(torch.randn(2, 4, 5)), "o": nn.Linear(10, 3)},
        lambda m, x: m.o(torch.einsum("bsgi,gio->bsgo", m.a(x).unflatten(-1, (2, 4)), m.w).flatten(2)),
        {"a": 2, "a#2": 4, "w": 5},
    ),
    "ellipses": (
        {"a": nn.Linear(6, 4), "w": nn.Parameter(torch.randn(5, 4)), "o": nn.Linear(5, 3)},
        lambda m, x: m.o(torch.einsum("...i,oi->...o", m.a(x), m.w)),
        {"a": 4, "w": 5},
    ),
    "no arrow": (
        {"a": nn.Linear(6, 4), "w": nn.Parameter(torch.randn(4, 5)), "o": nn.Linear(5, 3)},
        lambda m, x: m.o(torch.einsum("abz, zc", m.a(x), m.w)),
        {"a": 4, "w": 5},
    ),
    "three operands and a broadcast": (
        {**two(), "p": nn.Parameter(torch.randn(1, 4))},
        lambda m, x: m.o(torch.einsum("bsd,bsd,bd->bsd", m.a(x), m.c(x).exp(), m.p)),
        {"a": 4},
    ),
    "one operand": (
        two(),
        lambda m, x: m.o(torch.einsum("bsd->bd", F.relu(m.a(x))) + torch.einsum("bsd->bd", m.c(x))),
        {"a": 4},
    ),
    "pairs of fields": (
        {"a": nn.Linear(6, 4), "o": nn.Linear(5, 3)},
        lambda m, x: m.o(torch.einsum("bfd,bgd->bfg", m.a(x), m.a(x))),
        {"a": 4},
    ),
    "tensordot": (
        {"a": nn.Linear(6, 8), "w": nn.Parameter(torch.randn(5, 2, 4)), "o": nn.Linear(5, 3)},
        lambda m, x: m.o(torch.tensordot(m.a(x).unflatten(-1, (2, 4)), m.w, dims=([2, 3], [1, 2]))),
        {"a": 2, "a#2": 4, "w": 5},
    ),
    "inner": (
        {"a": nn.Linear(6, 4), "w": nn.Parameter(torch.randn(5, 4)), "o": nn.Linear(5, 3)},
        lambda m, x: m.o(torch.inner(m.a(x), m.w)),
        {"a": 4, "w": 5},
    ),
    "outer and a matrix times a vector": (
        {
            "a": nn.Linear(6, 4),
            "p": nn.Parameter(torch.randn(4)),
            "r": nn.Parameter(torch.randn(5)),
            "o": nn.Linear(5, 3),
        },
        lambda m, x: m.o(m.a(x) @ torch.outer(m.p, m.r)) * torch.mv(m.a(x)[:, 0], m.p)[:, None, None],
        {"p": 4, "r": 5},
    ),
    "dot": (
        {"a": nn.Linear(6, 4), "p": nn.Parameter(torch.randn(4)), "o": nn.Linear(4, 3)},
        lambda m, x: m.o(m.a(x) * torch.dot(m.p, m.p)),
        {"a": 4, "p": 4},
    ),
    "sum over samples with addbmm": (
        {"a": nn.Linear(6, 4), "c": nn.Linear(6, 4), "s": nn.Parameter(torch.randn(4, 4)), "o": nn.Linear(4, 3)},
        lambda m, x: m.o(m.a(x) @ torch.addbmm(m.s, m.c(x).mT, m.a(x), beta=0.5)),
        {"s": 4},
    ),
    "baddbmm without what it adds": (
        {"a": nn.Linear(6, 4), "c": nn.Linear(6, 4), "o": nn.Linear(4, 3)},
        lambda m, x: m.o(torch.baddbmm(x[..., :1].exp(), m.a(x), m.c(x).mT, beta=0) @ m.c(x)),
        {"a": 4},
    ),
    "addmv and addr": (
        {
            "w": nn.Parameter(torch.randn(5, 4)),
            "p": nn.Parameter(torch.randn(4)),
            "s": nn.Parameter(torch.randn(5)),
            "a": nn.Linear(6, 5),
            "o": nn.Linear(4, 3),
        },
        lambda m, x: m.o(m.a(x) @ torch.addr(m.w, torch.addmv(m.s, m.w, m.p), m.p)),
        {"w": 5, "w#2": 4},
    ),
    "vectors through a linear layer": (
        {
            "a": nn.Linear(6, 4),
            "p": nn.Parameter(torch.randn(4)),
            "o": nn.Linear(4, 3),
            "r": nn.Parameter(torch.randn(4)),
        },
        lambda m, x: F.linear(m.a(x), m.r)[..., None] * m.o(m.p),
        {"a": 4, "p": 4},
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_by_labels(name: str, tools: Any) -> None:
    parts, forward, expected = PRODUCTS[name]
    graph = tools.prove(tools.Net(forward, **parts), TOKENS)
    assert tools.prunable(graph) == expected


def test_macs_of_products(tools: Any) -> None:
    parts, forward, _ = PRODUCTS["stacked weights"]
    graph = graphs.trace(tools.Net(forward, **parts), TOKENS)
    assert graph.macs() == 5 * (6 * 8 + 2 * 4 * 5 + 10 * 3)
    parts, forward, _ = PRODUCTS["three operands and a broadcast"]
    graph = graphs.trace(tools.Net(forward, **parts), TOKENS)
    assert graph.macs() == 5 * (6 * 4 * 2 + 4 + 4 + 4 * 3)


# -- the structure of what is inferred (DESIGN §1) -------------------------------------------------------------------


def pattern(graph: Any, *places: tuple[str, int]) -> list[str]:
    """Resolved expressions with a letter per axis, in the order in which they come."""
    letters: dict[Atom, str] = {}

    def spell(expr: Expr) -> str:
        if isinstance(expr, Atom):
            return letters.setdefault(expr, "abcdefgh"[len(letters)])
        if isinstance(expr, Product):
            return "·".join(map(spell, expr.factors))
        assert isinstance(expr, Sum)
        return "[" + " + ".join(map(spell, expr.terms)) + "]"

    return [spell(graph.inferred.resolved(name)[dim]) for name, dim in places]


def test_fused_projections_of_gpt2(tools: Any) -> None:
    """One head axis; queries and keys share a head size, values have their own."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = torch.addmm(m.bias, x.view(-1, x.size(-1)), m.weight).view(x.size(0), x.size(1), -1)
        q, k, v = (heads(t) for t in y.split(12, 2))
        return m.o(merged(F.scaled_dot_product_attention(q, k, v, is_causal=True)))

    parts = {"weight": nn.Parameter(torch.randn(6, 36)), "bias": nn.Parameter(torch.randn(36)), "o": nn.Linear(12, 3)}
    graph = tools.prove(tools.Net(forward, **parts), TOKENS)
    places = (("weight", 1), ("bias", 0), ("o.weight", 1))
    assert pattern(graph, *places) == ["[a·b + a·b + a·c]", "[a·b + a·b + a·c]", "a·c"]


def test_grouped_rotary_projections_of_llama(tools: Any) -> None:
    """A pruned rotary pair goes in both halves; a pruned group takes its key, its value and its queries along."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        phase = torch.arange(x.size(1))[:, None] * m.frequencies
        phase = torch.cat((phase, phase), -1)
        q, k, v = heads(m.q(x)), heads(m.k(x), 2), heads(m.v(x), 2)
        q, k = (t * phase.cos() + rotate_half(t) * phase.sin() for t in (q, k))
        k, v = (grouped_copies(t, "expand") for t in (k, v))
        return m.o(merged(F.scaled_dot_product_attention(q, k, v, is_causal=True)))

    parts = {**projections(q=16, k=8, v=6, out=12), "frequencies": torch.tensor([1.0, 0.3])}
    graph = tools.prove(tools.Net(forward, **parts), TOKENS)
    places = (("q.weight", 0), ("k.weight", 0), ("v.weight", 0), ("o.weight", 1))
    assert pattern(graph, *places) == ["a·b·[c + c]", "a·[c + c]", "a·d", "a·b·d"]
