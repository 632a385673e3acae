"""Networks written here: sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.networks.entry import Built, Entry, tokens

WORDS = 50


class Tagger(nn.Module):
    """Embedding, recurrent layers, one label per token."""

    def __init__(self, cell: type[nn.RNNBase], hidden: int = 24, **options: Any):
        super().__init__()
        self.embed = nn.Embedding(WORDS, 16)
        self.first = options.get("batch_first", True)
        self.cell = cell(16, hidden, **{"batch_first": True, **options})
        width = options.get("proj_size", 0) or hidden
        self.head = nn.Linear(width * (2 if options.get("bidirectional") else 1), 5)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        if self.first:
            return self.head(self.cell(x)[0])
        return self.head(self.cell(x.transpose(0, 1))[0].transpose(0, 1))


class LastState(nn.Module):
    """A classifier on the last hidden states of both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(6, 20, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, (hidden, _) = self.cell(x)
        return self.head(torch.cat([hidden[-2], hidden[-1]], dim=1))


class CellLoop(nn.Module):
    """An LSTM cell stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(6, 20)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, c = x.new_zeros(x.shape[0], 20), x.new_zeros(x.shape[0], 20)
        for step in range(x.shape[1]):
            h, c = self.cell(x[:, step], (h, c))
        return self.head(h)


class SelfAttention(nn.Module):
    """nn.MultiheadAttention with a residual and a feed-forward part."""

    def __init__(self, width: int = 24, heads: int = 4, **options: Any):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True, **options)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 48), nn.Linear(48, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(self.norm2(x + self.down(F.gelu(self.up(x)))).mean(1))


class CrossAttention(nn.Module):
    """nn.MultiheadAttention between two sequences of different widths; gives its weights too."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(10, 24)
        self.attention = nn.MultiheadAttention(24, 4, kdim=12, vdim=14, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        mixed, weights = self.attention(self.lift(query), key, value)
        return self.head(mixed), weights


class Encoder(nn.Module):
    def __init__(self, **options: Any):
        super().__init__()
        self.embed = nn.Embedding(WORDS, 24)
        self.position = nn.Parameter(torch.randn(1, 32, 24))
        layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True, **options)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, 5)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words) + self.position[:, : words.shape[1]]
        return self.head(self.layers(x))


class Translator(nn.Module):
    """nn.Transformer with a causal mask; without `causal` it compares the mask's values to find that out."""

    def __init__(self, causal: bool | None):
        super().__init__()
        self.causal = causal
        self.embed = nn.Embedding(WORDS, 24)
        self.transformer = nn.Transformer(24, 4, 1, 1, 40, batch_first=True)
        self.head = nn.Linear(24, WORDS)
        self.head.weight = self.embed.weight

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = torch.full((target.shape[1], target.shape[1]), float("-inf"), dtype=self.embed.weight.dtype).triu(1)
        mixed = self.transformer(
            self.embed(source), self.embed(target), tgt_mask=mask, tgt_is_causal=self.causal, memory_is_causal=False
        )
        return self.head(mixed)


class EinsumAttention(nn.Module):
    """Attention spelt in einsum over weights of three dims, rotary positions, grouped queries, QK norm."""

    def __init__(self, width: int = 24, groups: int = 2, repeat: int = 2, size: int = 8):
        super().__init__()
        self.query = nn.Parameter(torch.randn(width, groups, repeat, size) * width**-0.5)
        self.key = nn.Parameter(torch.randn(width, groups, size) * width**-0.5)
        self.value = nn.Parameter(torch.randn(width, groups, size) * width**-0.5)
        self.out = nn.Parameter(torch.randn(groups, repeat, size, width) * width**-0.5)
        self.q_norm, self.k_norm = nn.RMSNorm(size, eps=1e-6), nn.RMSNorm(size, eps=1e-6)
        self.norm, self.head = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, 3)
        self.scale = size**-0.5

    def rotate(self, x: Tensor, angle: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        positions = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)
        angle = positions[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03], dtype=x.dtype, device=x.device)
        q = self.q_norm(torch.einsum("btw,wgrd->bgrtd", y, self.query))
        k = self.k_norm(torch.einsum("btw,wgd->bgtd", y, self.key))
        v = torch.einsum("btw,wgd->bgtd", y, self.value)
        q, k = self.rotate(q, angle), self.rotate(k, angle)
        weights = torch.einsum("bgrtd,bgsd->bgrts", q, k).mul(self.scale).softmax(-1)
        mixed = torch.einsum("bgrts,bgsd->bgrtd", weights, v)
        return self.head((x + torch.einsum("bgrtd,grdw->btw", mixed, self.out)).mean(1))


class ConformerBlock(nn.Module):
    """Gulati et al. 2020, with the modules in the order of torchaudio's."""

    def __init__(self, width: int, heads: int, hidden: int, kernel: int):
        super().__init__()
        self.ffn1, self.ffn2 = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Dropout(0.1),
                          nn.Linear(hidden, width), nn.Dropout(0.1))
            for _ in range(2)
        )  # fmt: skip
        self.attention_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=0.1)
        self.conv_norm = nn.LayerNorm(width)
        self.conv = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1), nn.GLU(dim=1),
            nn.Conv1d(width, width, kernel, padding=(kernel - 1) // 2, groups=width), nn.BatchNorm1d(width),
            nn.SiLU(), nn.Conv1d(width, width, 1), nn.Dropout(0.1),
        )  # fmt: skip
        self.final = nn.LayerNorm(width)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """`x` is (time, batch, width); `padding` (batch, time) is True where a frame is padding."""
        x = x + 0.5 * self.ffn1(x)
        y = self.attention_norm(x)
        x = x + self.attention(y, y, y, key_padding_mask=padding, need_weights=False)[0]
        y = self.conv(self.conv_norm(x).permute(1, 2, 0)).permute(2, 0, 1)
        x = x + y
        return self.final(x + 0.5 * self.ffn2(x))


class Conformer(nn.Module):
    def __init__(self, width: int = 24, labels: int = 11):
        super().__init__()
        self.project = nn.Linear(20, width)
        self.layers = nn.ModuleList(ConformerBlock(width, 4, 40, 7) for _ in range(2))
        self.head = nn.Linear(width, labels)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        time = torch.arange(features.shape[1], device=features.device)
        padding = time[None, :] >= lengths[:, None]
        x = self.project(features).transpose(0, 1)
        for layer in self.layers:
            x = layer(x, padding)
        return self.head(x.transpose(0, 1)).log_softmax(-1)


class SelectiveScan(nn.Module):
    """A Mamba-like block (Gu and Dao 2023): causal depthwise convolution, gate, and a scan written as a loop."""

    def __init__(self, width: int = 16, inner: int = 24, state: int = 4, rank: int = 3):
        super().__init__()
        self.embed, self.norm = nn.Embedding(WORDS, width), nn.RMSNorm(width, eps=1e-6)
        self.enter = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, 4, padding=3, groups=inner)
        self.select = nn.Linear(inner, rank + 2 * state, bias=False)
        self.step = nn.Linear(rank, inner)
        self.log_decay = nn.Parameter(torch.log(torch.arange(1, state + 1).float()).repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        self.leave, self.head = nn.Linear(inner, width, bias=False), nn.Linear(width, 5)
        self.sizes = (rank, state, state)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        u, gate = self.enter(self.norm(x)).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., : words.shape[1]].transpose(1, 2))
        rank, b, c = self.select(u).split(self.sizes, -1)
        delta = F.softplus(self.step(rank))
        decay = torch.exp(delta[..., None] * -torch.exp(self.log_decay))
        drive = (delta * u)[..., None] * b[:, :, None, :]
        h = torch.zeros_like(drive[:, 0])
        outputs = []
        for t in range(words.shape[1]):
            h = decay[:, t] * h + drive[:, t]
            outputs.append((h * c[:, t, None, :]).sum(-1))
        y = (torch.stack(outputs, 1) + u * self.skip) * F.silu(gate)
        return self.head(x + self.leave(y))


def words(length: int = 7) -> Tensor:
    return tokens(length, WORDS)


def tagger(cell: type[nn.RNNBase], **options: Any) -> Entry:
    return Entry(lambda: (Tagger(cell, **options), words()), "own recurrent")


def conformer() -> Built:
    return Conformer(), (torch.randn(2, 12, 20), torch.tensor([12, 8]))


def cross_attention() -> Built:
    return CrossAttention(), (torch.randn(2, 5, 10), torch.randn(2, 6, 12), torch.randn(2, 6, 14))


TABLE: dict[str, Entry] = {
    "own/lstm": tagger(nn.LSTM),
    "own/lstm_bidirectional": tagger(nn.LSTM, num_layers=2, bidirectional=True, dropout=0.1),
    "own/lstm_projection": tagger(nn.LSTM, num_layers=2, proj_size=12),
    "own/lstm_time_first": tagger(nn.LSTM, num_layers=2, batch_first=False, bias=False),
    "own/gru": tagger(nn.GRU, num_layers=2),
    "own/gru_bidirectional": tagger(nn.GRU, num_layers=2, bidirectional=True, batch_first=False),
    "own/rnn": tagger(nn.RNN, num_layers=2, nonlinearity="relu"),
    "own/rnn_bidirectional": tagger(nn.RNN, bidirectional=True),
    "own/lstm_last_state": Entry(lambda: (LastState(), torch.randn(2, 7, 6)), "own recurrent"),
    "own/lstm_cell": Entry(lambda: (CellLoop(), torch.randn(2, 5, 6)), "own recurrent"),
    "own/multihead_attention": Entry(lambda: (SelfAttention(), torch.randn(2, 6, 24)), "own attention"),
    "own/multihead_bias_kv": Entry(
        lambda: (SelfAttention(add_bias_kv=True, add_zero_attn=True), torch.randn(2, 6, 24)), "own attention"
    ),
    "own/cross_attention": Entry(cross_attention, "own attention"),
    "own/transformer_encoder": Entry(lambda: (Encoder(), words()), "own attention"),
    "own/transformer_encoder_pre_norm": Entry(
        lambda: (Encoder(norm_first=True, activation="gelu"), words()), "own attention"
    ),
    "own/transformer": Entry(lambda: (Translator(True), (words(), words(5))), "own attention"),
    "own/transformer_mask_by_value": Entry(lambda: (Translator(None), (words(), words(5))), "own attention"),
    "own/einsum_attention": Entry(lambda: (EinsumAttention(), torch.randn(2, 6, 24)), "own attention"),
    "own/conformer": Entry(conformer, "own sequence"),
    "own/selective_scan": Entry(lambda: (SelectiveScan(), words()), "own sequence"),
}
