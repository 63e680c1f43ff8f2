"""Attention whose heads need not fill the embedding: what is left of ``nn.MultiheadAttention`` without some heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionOfFewerHeads(nn.Module):
    """The function of an ``nn.MultiheadAttention``, with projections of any size.

    Same call, same names of parameters; ``nn.TransformerEncoderLayer`` sees by ``_qkv_same_embed_dim`` that its fast
    kernel, which insists on heads that fill the embedding, is not for this module.

    Parameters
    ----------
    attention : nn.MultiheadAttention
        Its parameters are taken over. Without ``bias_k``, ``bias_v`` and ``add_zero_attn``.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self._qkv_same_embed_dim = False
        self.in_proj_weight: nn.Parameter | None
        self.in_proj_bias: nn.Parameter | None
        self.embed_dim, self.kdim, self.vdim = attention.embed_dim, attention.kdim, attention.vdim
        self.num_heads = self.heads_of_mask = attention.num_heads
        self.kept_heads = tuple(range(attention.num_heads))
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"):
            self.register_parameter(name, getattr(attention, name))
        self.out_proj = attention.out_proj
        self.training = attention.training

    def keep_heads(self, heads: Sequence[int]) -> None:
        """Note which heads the projections still have; masks of one entry per head keep the number that they had."""
        self.kept_heads = tuple(self.kept_heads[head] for head in heads)
        self.num_heads = len(heads)

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
        """Attention output, and the weights if they are needed; as ``nn.MultiheadAttention.forward``."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (part.unsqueeze(0) for part in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self._project(query, key, value)
        )
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Shape (batch, length, heads * size) each."""
        weights: Any = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]

    def _mask(self, q: Tensor, k: Tensor, padding: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
        """What is added to the scores, broadcastable to (batch, heads, queries, keys)."""
        total = None
        if attn_mask is not None:
            total = _added(attn_mask, q)
            if total.dim() == 3:  # one mask per sample and head
                total = total.unflatten(0, (-1, self.heads_of_mask))[:, list(self.kept_heads)]
        if padding is not None:
            padded = _added(padding, q)[:, None, None, :]
            total = padded if total is None else total + padded
        return total


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -torch.inf)
