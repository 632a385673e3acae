"""What an axis is called decides what `axes="inner"` prunes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paretoprune.core.axis import INNER_KINDS
from paretoprune.graph import trace


class Heads(nn.Module):
    """x + attention(x), with 2 groups of `repeat` query heads; fused or spelled out."""

    def __init__(self, repeat: int, fused: bool):
        super().__init__()
        self.q, self.o = nn.Linear(12, 2 * repeat * 4), nn.Linear(2 * repeat * 4, 12)
        self.k, self.v = nn.Linear(12, 8), nn.Linear(12, 8)
        self.embed, self.head = nn.Embedding(9, 12), nn.Linear(12, 3)
        self.repeat, self.fused = repeat, fused

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        b, t, _ = x.shape
        q, k, v = (m(x).view(b, t, -1, 4).transpose(1, 2) for m in (self.q, self.k, self.v))
        if self.repeat > 1:
            k, v = (y.repeat_interleave(self.repeat, 1) for y in (k, v))
        spelled = (q @ k.transpose(-2, -1) / 2 + 1).softmax(-1) @ v
        y = F.scaled_dot_product_attention(q, k, v) if self.fused else spelled
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        return self.head(x)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("repeat", [1, 3])
def test_attention(repeat: int, fused: bool) -> None:
    graph = trace(Heads(repeat, fused), torch.randint(9, (2, 5)))
    kinds = sorted((a.kind, a.size) for a in graph.axes if a.prunable)
    groups = [("heads", 2)] if repeat == 1 else [("kv groups", 2), ("query heads", 3)]
    assert kinds == sorted([*groups, ("head size", 4), ("head size", 4), ("residual", 12)])
    assert {a.kind for a in graph.axes} & INNER_KINDS == {groups[0][0]}


def one(kind: str, model: nn.Module, example: Any) -> None:
    graph = trace(model, example)
    assert kind in {a.kind for a in graph.axes if a.prunable}, [(a.id, a.kind, a.why) for a in graph.axes]


def test_recurrent_units() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.rnn = nn.Embedding(9, 6), nn.LSTM(6, 5, batch_first=True, bidirectional=True)
            self.head = nn.Linear(10, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(self.embed(ids))[0])

    ids = torch.randint(9, (2, 4))
    one("rnn hidden", Tagger(), ids)
    one("embedding", Tagger(), ids)


def test_experts() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 6, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answers = torch.matmul(x[:, None, None], self.up)[:, :, 0]
            return (answers * torch.sigmoid(self.gate(x))[..., None]).sum(1)

    one("experts", Experts(), torch.randn(2, 6))


def test_an_activation_written_as_a_sum_is_no_residual_stream() -> None:
    class Tanh(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.up(x)
            return self.down(0.5 * y * (1 + torch.tanh(y + 0.044715 * y**3)))

    graph = trace(Tanh(), torch.randn(2, 6))
    assert [(a.id, a.kind) for a in graph.axes if a.prunable] == [("up", "channel")]


def test_a_cast_or_a_dropout_does_not_hide_the_skip() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.f, self.head, self.drop = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3), nn.Dropout(0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head(x.to(torch.float32) + self.drop(self.f(x)))

    graph = trace(Block(), torch.randn(2, 6))
    assert [(a.id, a.kind) for a in graph.axes if a.prunable] == [("stem", "residual")]


def test_positions_and_masks_are_no_axes_of_a_weight() -> None:
    class Numbered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place, self.head = nn.Embedding(9, 6), nn.Embedding(7, 6), nn.Linear(6, 3)
            self.register_buffer("ids", torch.arange(7)[None])
            self.register_buffer("unread", torch.randn(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head((self.embed(x) + self.place(self.ids[:, : x.shape[1]])).mean(1))

    graph = trace(Numbered(), torch.randint(9, (2, 5)))
    assert [a.size for a in graph.axes if a.prunable] == [6]
    assert not [a for a in graph.axes if a.prunable and any(m.name == "unread" for m in a.members)]
