"""Reading and writing by number: what is numbered stays, everything else is pruned exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paretoprune import graph as graphs

TOKENS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))


def numbers(x: torch.Tensor, below: int = 7) -> torch.Tensor:
    """(samples, 5) integers that the input decides."""
    return (x[..., 0].abs() * 10).long() % below


def parts(**more: Any) -> dict[str, Any]:
    return {"a": nn.Linear(6, 8), "o": nn.Linear(8, 3), **more}


def table(width: int = 8, **options: Any) -> dict[str, Any]:
    return {"e": nn.Embedding(7, width, **options), "o": nn.Linear(width, 3)}


def tied(m: Any, x: torch.Tensor) -> torch.Tensor:
    return F.linear(m.n(m.e(numbers(x))), m.e.weight)


def flat_bags(m: Any, x: torch.Tensor, mode: str) -> torch.Tensor:
    offsets = torch.arange(x.size(0)) * 5
    return m.o(F.embedding_bag(numbers(x).view(-1), m.e.weight, offsets, mode=mode))


def where_written(m: Any, x: torch.Tensor, write: Any) -> torch.Tensor:
    """`write` changes zeros of the width of m.a by what m.a gives; both are summed over with another activation."""
    y = m.a(x)
    return m.o(write(torch.zeros_like(y), y, numbers(x, 5)) * m.p)


def wide(index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return index[..., None].expand(-1, -1, like.size(-1))


def assigned(index: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    z = torch.zeros_like(y)
    z[:, :, index] = y
    return z


PLUS = {"p": nn.Parameter(torch.randn(8))}

CASES: dict[str, tuple[dict[str, Any], Any, dict[str, int]]] = {
    # tables
    "embedding": (table(), lambda m, x: m.o(m.e(numbers(x))), {"e#2": 8}),
    "embedding with padding": (table(padding_idx=0), lambda m, x: m.o(m.e(numbers(x))), {"e#2": 8}),
    "tied to the output": ({"e": nn.Embedding(7, 8), "n": nn.Linear(8, 8)}, tied, {"e#2": 8}),
    "tied, transposed": (
        {"e": nn.Embedding(7, 8)},
        lambda m, x: torch.tanh(m.e(numbers(x))) @ m.e.weight.t(),
        {"e#2": 8},
    ),
    "positions": (
        {**table(), "p": nn.Embedding(9, 8)},
        lambda m, x: m.o(m.e(numbers(x)) + m.p(torch.arange(x.size(1)))),
        {"e#2": 8},
    ),
    "width times itself": (
        table(),
        lambda m, x: (lambda y: m.o(y * (y @ y.mT).mean(-1, keepdim=True)))(m.e(numbers(x))),
        {"e#2": 8},
    ),
    "bags": ({**table(), "b": nn.EmbeddingBag(7, 8)}, lambda m, x: m.o(m.b(numbers(x))), {"b": 8}),
    "bags by offsets, sum": (table(), lambda m, x: flat_bags(m, x, "sum"), {"e#2": 8}),
    "bags by offsets, max": (table(), lambda m, x: flat_bags(m, x, "max"), {"e#2": 8}),
    # reading
    "index": (
        parts(w=nn.Parameter(torch.randn(7, 8))),
        lambda m, x: m.o(m.a(x) * m.w[numbers(x)]),
        {"a": 8},
    ),
    "index in the middle": (
        parts(),
        lambda m, x: m.o(m.a(x)[:, torch.tensor([[0, 2], [4, 4]])]),
        {"a": 8},
    ),
    "indices beside each other": (
        parts(w=nn.Parameter(torch.randn(4, 3, 8))),
        lambda m, x: m.o(m.a(x) + m.w[numbers(x, 4), numbers(x, 3)]),
        {"a": 8},
    ),
    "indices apart": (
        parts(w=nn.Parameter(torch.randn(4, 8, 3))),
        lambda m, x: m.o(m.a(x) + m.w[numbers(x, 4), :, numbers(x, 3)]),
        {"a": 8},
    ),
    "index by a buffer": (
        parts(w=nn.Parameter(torch.randn(7, 8)), i=torch.tensor([3, 0, 0, 6, 1])),
        lambda m, x: m.o(m.a(x) + m.w[m.i]),
        {"a": 8},
    ),
    "columns by a buffer": (
        {"a": nn.Linear(6, 8), "i": torch.tensor([3, 0, 0, 6]), "o": nn.Linear(4, 3)},
        lambda m, x: m.o(m.a(x)[..., m.i]),
        {"o#2": 4},
    ),
    "index by a mask": (
        parts(),
        lambda m, x: m.o(m.a(x)[x[..., 0] > 0]).sum() + x,
        {"a": 8, "o": 3},
    ),
    "index_select": (
        parts(w=nn.Parameter(torch.randn(8, 7))),
        lambda m, x: m.o(m.a(x) * m.w.index_select(1, numbers(x)[:, 0]).t()[:, None]),
        {"a": 8},
    ),
    "gather": (
        parts(),
        lambda m, x: (lambda y: m.o(y.gather(1, wide(numbers(x, 5), y))))(m.a(x)),
        {"a": 8},
    ),
    "gather heads by distance": (
        {"a": nn.Linear(6, 20), "o": nn.Linear(4, 3)},
        lambda m, x: m.o(
            m.a(x)
            .view(-1, 5, 4, 5)
            .transpose(1, 2)
            .gather(-1, numbers(x, 5)[:, None, None].expand(-1, 4, 5, -1))
            .sum(-1)
            .mT
        ),
        {"a": 4},
    ),
    "take_along_dim": (
        parts(w=nn.Parameter(torch.randn(8, 7))),
        lambda m, x: m.o(m.a(x) * m.w.take_along_dim(torch.tensor([[0, 2, 2, 5, 1]]), 1).t()),
        {"a": 8},
    ),
    "take": (
        {"w": nn.Parameter(torch.randn(3, 4)), **parts()},
        lambda m, x: m.o(m.a(x) * m.w.take(numbers(x))[..., None]),
        {"a": 8},
    ),
    "last token": (
        parts(),
        lambda m, x: m.o(m.a(x)[torch.arange(x.size(0)), numbers(x, 5)[:, 0]]),
        {"a": 8},
    ),
    # writing
    "scatter": (
        {**parts(), **PLUS},
        lambda m, x: where_written(m, x, lambda z, y, i: z.scatter(1, wide(i, y), y)),
        {"a": 8},
    ),
    "scatter a number": (
        {**parts(), **PLUS},
        lambda m, x: where_written(m, x, lambda z, y, i: y.scatter(1, wide(i, y), 1.5)),
        {"a": 8},
    ),
    "scatter_add": (
        {**parts(), **PLUS},
        lambda m, x: where_written(m, x, lambda z, y, i: z.scatter_add(1, wide(i, y), y)),
        {"a": 8},
    ),
    "scatter_reduce": (
        {**parts(), **PLUS},
        lambda m, x: where_written(
            m, x, lambda z, y, i: z.scatter_reduce(1, wide(i, y), y, "amax", include_self=False)
        ),
        {"a": 8},
    ),
    "index_add": (
        {**parts(), **PLUS},
        lambda m, x: where_written(m, x, lambda z, y, i: z.index_add(1, i[0], y, alpha=2)),
        {"a": 8},
    ),
    "index_copy": (
        {**parts(), **PLUS},
        lambda m, x: where_written(m, x, lambda z, y, i: z.index_copy(1, torch.tensor([4, 1, 0, 2, 3]), y)),
        {"a": 8},
    ),
    "index_fill": (
        {**parts(), **PLUS},
        lambda m, x: where_written(m, x, lambda z, y, i: y.index_fill(1, i[0], 0.5)),
        {"a": 8},
    ),
    "index_put": (
        {**parts(), **PLUS},
        lambda m, x: where_written(m, x, lambda z, y, i: z.index_put((torch.arange(x.size(0))[:, None], i), y, True)),
        {"a": 8},
    ),
    "index_put by a mask": (
        {**parts(), **PLUS},
        lambda m, x: where_written(m, x, lambda z, y, i: y.index_put((x[..., 0] > 0,), m.p)),
        {"a": 8},
    ),
    "index_put behind": (
        {**parts(), **PLUS},
        lambda m, x: m.o(assigned(numbers(x, 5)[0], m.a(x).mT).mT * m.p),
        {"a": 8},
    ),
    "masked_fill": (
        parts(),
        lambda m, x: (lambda y: m.o(y.masked_fill(x[..., :1] > 0, 0.0).sum(-1, keepdim=True) + y))(m.a(x)),
        {"a": 8},
    ),
    "masked_fill with a tensor": (
        parts(q=nn.Parameter(torch.randn(()))),
        lambda m, x: m.o(m.a(x).masked_fill(x[..., :1] > 0, m.q)),
        {"a": 8},
    ),
    # repetition
    "repeat_interleave": (
        {"a": nn.Linear(6, 4), "o": nn.Linear(12, 3)},
        lambda m, x: m.o(m.a(x).repeat_interleave(3, -1)),
        {"a": 4, "o#2": 3},
    ),
    "repeat_interleave over everything": (
        {"p": nn.Parameter(torch.randn(2, 4)), "o": nn.Linear(24, 3)},
        lambda m, x: x[..., :3] + m.o(m.p.repeat_interleave(3)),
        {"p": 2, "p#2": 4, "o#2": 3},
    ),
    "repeat beside": (
        {"a": nn.Linear(6, 4), "p": nn.Parameter(torch.randn(12)), "o": nn.Linear(12, 3)},
        lambda m, x: m.o(m.a(x).repeat(1, 1, 3) * m.p),
        {"a": 4, "p": 3},
    ),
    # positions and ranks
    "one-hot": (
        {"w": nn.Linear(7, 8), "o": nn.Linear(8, 3)},
        lambda m, x: m.o(m.w(F.one_hot(numbers(x), 7).type_as(x))),
        {"w": 8},
    ),
    "triangle": (
        parts(w=nn.Parameter(torch.randn(8, 5, 5))),
        lambda m, x: m.o((m.w.tril() @ m.a(x).mT[..., None]).squeeze(-1).mT),
        {"a": 8},
    ),
    "topk": (
        parts(),
        lambda m, x: m.o(m.a(x).topk(3, 1)[0]),
        {"a": 8},
    ),
    "sort": (
        parts(),
        lambda m, x: (lambda v, i: m.o(v + i * 0.1))(*m.a(x).sort(1)),
        {"a": 8},
    ),
    "argsort and argmax": (
        parts(),
        lambda m, x: m.o((m.a(x).argsort(1) + m.a(x).argmax(1, keepdim=True)).type_as(x)),
        {"a": 8},
    ),
    "kthvalue, median and mode": (
        parts(),
        lambda m, x: (lambda y: m.o(y.kthvalue(2, 1)[0] + y.median(1)[0] + y.mode(1)[0]))(m.a(x)),
        {"a": 8},
    ),
    "buckets": (
        parts(b=torch.tensor([-0.5, 0.0, 0.5])),
        lambda m, x: m.o(torch.bucketize(m.a(x), m.b).type_as(x)),
        {"a": 8},
    ),
    "pieces that are empty": (
        parts(),
        lambda m, x: (lambda y: m.o(torch.cat((y[..., :8].tanh(), y[..., 8:]), -1)))(m.a(x)),
        {"a": 8},
    ),
    "experts in stacks": (
        {"a": nn.Linear(6, 8), "w": nn.Parameter(torch.randn(3, 8, 4)), "o": nn.Linear(4, 3)},
        lambda m, x: m.o(torch.bmm(m.a(x).view(-1, 1, 8), m.w[numbers(x, 3).view(-1)]).view(-1, 5, 4)),
        {"a": 8, "w#2": 4},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_pruned_equals_the_zeroed_network(name: str, tools: Any) -> None:
    layers, forward, expected = CASES[name]
    graph = tools.prove(tools.Net(forward, **layers), TOKENS)
    assert tools.prunable(graph) == expected


# What must stay: parts, forward, parameter, dim, words.
FROZEN: dict[str, tuple[dict[str, Any], Any, str, int, str]] = {
    "vocabulary": (table(), lambda m, x: m.o(m.e(numbers(x))), "e.weight", 0, "looked up by number"),
    "a table that is scaled while it is read": (
        table(max_norm=1.0),
        lambda m, x: m.o(m.e(numbers(x))),
        "e.weight",
        1,
        "embedding_renorm_",
    ),
    "columns": (
        {"a": nn.Linear(6, 8), "i": torch.tensor([3, 0, 0, 6]), "o": nn.Linear(4, 3)},
        lambda m, x: m.o(m.a(x)[..., m.i]),
        "a.weight",
        0,
        "looked up by number",
    ),
    "values written over": (
        {**parts(), **PLUS},
        lambda m, x: (lambda y: m.o(m.p * y.masked_fill(x[..., :1] > 0, 1.0).sum(-1, keepdim=True)))(m.a(x)),
        "a.weight",
        0,
        "what is removed is not zero there",
    ),
    "numbers written over": (
        {**parts(), **PLUS},
        lambda m, x: (lambda y: m.o(m.p * y.index_fill(1, numbers(x, 5)[0], 0.5).sum(-1, keepdim=True)))(m.a(x)),
        "a.weight",
        0,
        "what is removed is not zero there",
    ),
    "the dim that is written": (
        {"p": nn.Parameter(torch.randn(5, 8)), "w": nn.Parameter(torch.randn(3, 5)), **parts()},
        lambda m, x: m.o(m.w @ m.p.index_add(0, numbers(x, 5)[0], m.a(x)[0])) + x.sum(),
        "w",
        1,
        "written by number",
    ),
    "ranked": (parts(), lambda m, x: m.o(m.a(x).sort(-1)[0]), "a.weight", 0, "ranked by value"),
    "taken": (
        {"w": nn.Parameter(torch.randn(3, 4)), **parts()},
        lambda m, x: m.o(m.a(x) * m.w.take(numbers(x))[..., None]),
        "w",
        1,
        "looked up by number",
    ),
    "compared in a triangle": (
        {"w": nn.Parameter(torch.randn(8, 8)), **parts()},
        lambda m, x: m.o(m.a(x) @ m.w.triu()),
        "w",
        0,
        "its positions are compared",
    ),
    "chosen by value": (
        {"a": nn.Linear(6, 8), "o": nn.Linear(6, 3)},
        lambda m, x: m.o(x) + m.a(x).masked_select(m.a(x) > 0).sum(),
        "a.weight",
        0,
        "values decide",
    ),
    "numbers that are summed": (
        {"a": nn.Linear(6, 8), "o": nn.Linear(1, 3)},
        lambda m, x: m.o(m.a(x).argsort(1).type_as(x).sum(-1, keepdim=True)),
        "a.weight",
        0,
        "what is removed is not zero there",
    ),
    "a one-hot of a pruned list": (
        {"a": nn.Linear(6, 8), "i": torch.tensor([1, 3, 2, 1, 4, 2, 1, 1]), "o": nn.Linear(5, 3)},
        lambda m, x: m.o((m.a(x)[..., None] + F.one_hot(m.i, 5).type_as(x)).sum(-2)),
        "a.weight",
        0,
        "what is removed is not zero there",
    ),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_with_the_reason(name: str, tools: Any) -> None:
    layers, forward, parameter, dim, words = FROZEN[name]
    graph = tools.prove(tools.Net(forward, **layers), TOKENS, eager=False)
    assert words in tools.why(graph, parameter, dim)


def test_lists_of_numbers_are_no_axes_to_prune(tools: Any) -> None:
    """What is left of a list of positions beyond the sequence, and buffers that nothing reads, hold nothing."""
    model = tools.Net(
        lambda m, x: m.o(m.e(m.positions[:, : x.size(1)]) + x[..., :1]),
        e=nn.Embedding(9, 8),
        o=nn.Linear(8, 3),
        positions=torch.arange(9)[None],
        spare=torch.randn(4),
    )
    assert tools.prunable(tools.prove(model, TOKENS)) == {"e#2": 8}


def test_an_output_of_topk_is_nobodys_view(tools: Any) -> None:
    """Dividing it in place is no obstacle (Mixtral's router)."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        weights, _ = m.a(x).softmax(1).topk(2, 1)
        weights /= weights.sum(1, keepdim=True)
        return m.o(weights)

    graph = tools.prove(tools.Net(forward, **parts()), TOKENS)
    assert tools.prunable(graph) == {"a": 8}
    assert not graph.notes


def test_a_view_sees_what_is_written_after_it(tools: Any) -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x) * 1
        before = y.view(-1, 8)
        y.add_(1)
        y.relu_()
        return m.o(before).view(-1, 5, 3)

    graph = tools.prove(tools.Net(forward, **parts()), TOKENS)
    assert "add_ has no rule" in tools.why(graph, "a.weight", 0)


def test_runs_of_rows_per_expert(tools: Any) -> None:
    """torch's grouped product wants long rows in bfloat16, so only what is inferred is looked at."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        rows = m.a(x).flatten(0, 1)
        ends = torch.tensor([2, 5]) * 0 + rows.size(0)
        return m.o(torch._grouped_mm(rows, m.w, ends.int()))

    model = tools.Net(forward, a=nn.Linear(6, 16), w=nn.Parameter(torch.randn(2, 16, 8)), o=nn.Linear(8, 3)).bfloat16()
    graph = graphs.trace(model, TOKENS.bfloat16())
    assert tools.prunable(graph) == {"a": 16, "w#2": 8}
    assert "sorted into runs" in tools.why(graph, "w", 0)
    assert graph.macs() == 5 * (6 * 16 + 16 * 8 + 8 * 3)
