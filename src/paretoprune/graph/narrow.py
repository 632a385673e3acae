"""nn.MultiheadAttention whose heads no longer fill the embedding."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NarrowAttention(nn.MultiheadAttention):
    """Heads times head size may differ from `embed_dim`, which torch's own layer forbids.

    The same call, parameters and outputs; the scale stays the original one. Made by surgery, never from scratch.
    """

    scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        single = query.dim() == 2
        if single:
            query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        mask = _merged(attn_mask, key_padding_mask, query, self.num_heads)
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal needs attn_mask")
        output, weights = self._attend(query, key, value, mask, need_weights)
        output = self.out_proj(output)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            return output.squeeze(1), None if weights is None else weights.squeeze(0)
        return (output.transpose(0, 1) if self.batch_first else output), weights

    def _projected(self, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        if self.in_proj_weight is None:
            weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        else:
            weights = list(self.in_proj_weight.chunk(3))
        biases = [None] * 3 if self.in_proj_bias is None else list(self.in_proj_bias.chunk(3))
        return [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = (self._by_head(t) for t in self._projected((query, key, value)))
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
            return out.permute(2, 0, 1, 3).flatten(2), None
        scores = (q * self.scale) @ k.transpose(-2, -1)
        weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
        return (weights @ v).permute(2, 0, 1, 3).flatten(2), weights

    def _by_head(self, x: Tensor) -> Tensor:
        """(length, batch, heads · size) to (batch, heads, length, size)."""
        return x.reshape(*x.shape[:2], self.num_heads, -1).permute(1, 2, 0, 3)


def _merged(mask: Tensor | None, padding: Tensor | None, query: Tensor, heads: int) -> Tensor | None:
    """One additive mask, broadcastable to (batch, heads, queries, keys)."""
    result = None if mask is None else _additive(mask, query.dtype)
    if result is not None and result.dim() == 3:
        if result.shape[0] != query.shape[1] * heads:
            raise RuntimeError(
                f"attn_mask has {result.shape[0]} matrices for {query.shape[1]} samples of {heads} heads"
            )
        result = result.reshape(-1, heads, *result.shape[1:])
    if padding is None:
        return result
    away = _additive(padding, query.dtype)[:, None, None, :]
    return away if result is None else result + away


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def narrowed(module: Any, heads: int, head_dim: int, scale: float) -> NarrowAttention:
    """The same layer, its tensors shared, with a forward that takes heads of any number."""
    result = NarrowAttention.__new__(NarrowAttention)
    result.__dict__ = {k: copy.copy(v) if isinstance(v, dict) else v for k, v in vars(module).items()}
    result.num_heads, result.head_dim, result.scale = heads, head_dim, scale
    # torch's encoder layer has a fused path of its own, which must not take this layer for an ordinary one.
    result._qkv_same_embed_dim = False
    return result
