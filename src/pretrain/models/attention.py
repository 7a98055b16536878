"""Self-attention with grouped keys and values, by the fastest kernel for the device.

Shapes: B batch, T query positions, S key positions, H query heads, K key and value heads (K divides H), D head_dim.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from pretrain.kernels.softcap import Softcap, capped
from pretrain.models.config import TransformerConfig
from pretrain.models.document_groups import attend_in_groups
from pretrain.models.layers import RMSNorm
from pretrain.models.masks import AttentionMask, dense_mask, mask_mod
from pretrain.models.position import rotate

MAX_EAGER_SCORES = 1 << 22  # B x H x T x S of a layer: 8 MiB in bfloat16


class KVCache(Protocol):
    """Keys and values of earlier positions, kept for generation."""

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, D) keys and values of new positions; return those of all positions so far, (B, K, S, D)."""
        ...


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: float) -> Tensor:
    """Return attention (B, H, T, D) of queries (B, H, T, D) over keys and values (B, K, S, D).

    On a CPU in bf16, eager attention trains faster than SDPA while the scores (B, H, T, S) are few, because SDPA's
    backward runs at float32 speed (torch 2.13).
    """
    if mask.blocks is not None:
        q, k = (
            q.to(v.dtype),
            k.to(v.dtype),
        )  # normalized q, k are float32, and autocast does not cast them here
        output = flex_attention(q, k, v, block_mask=mask.blocks, enable_gqa=q.shape[1] != k.shape[1])
        assert isinstance(output, Tensor)
        return output
    if mask.groups is not None:
        return attend_in_groups(attend, (q, k, v), mask.groups, dropout)
    if _eager_is_faster(q, k):
        return _eager_attention(q, k, v, mask, dropout)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask.allowed,
        dropout_p=dropout,
        is_causal=mask.causal and mask.allowed is None,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _eager_is_faster(q: Tensor, k: Tensor) -> bool:
    """Return whether eager attention is faster: on a CPU, in bf16, with gradients and few scores."""
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
    return dtype is torch.bfloat16 and q.shape[:3].numel() * k.shape[2] <= MAX_EAGER_SCORES


def attend_capped(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, softcap: Softcap) -> Tensor:
    """Return `attend` with scores that `softcap` bounds, which no fused kernel of torch but FlexAttention's does.

    Source: Gemma Team 2024, https://arxiv.org/abs/2408.00118, section 2.
    """
    if mask.blocks is None:
        return _eager_attention(q, k, v, mask, softcap=softcap)
    q, k = q.to(v.dtype), k.to(v.dtype)

    def bounded(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap(score)

    output = flex_attention(q, k, v, bounded, mask.blocks, enable_gqa=q.shape[1] != k.shape[1])
    assert isinstance(output, Tensor)
    return output


def _eager_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: float = 0.0, *, softcap: Softcap | None = None
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = capped(softcap, (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2))
    allowed = mask.allowed
    if allowed is None and mask.causal:
        positions = torch.arange(q.shape[2], device=q.device)
        allowed = dense_mask(mask_mod(True, None), positions, positions)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return F.dropout(scores.softmax(-1), dropout) @ v


class Attention(nn.Module):
    """Self-attention with grouped keys and values, optional rotary positions and query-key norms.

    Source: Vaswani et al. 2017, section 3.2; Ainslie et al. 2023, https://arxiv.org/abs/2305.13245, section 2.2.
    With `attention_gate` the output is multiplied by a sigmoid of the input (Qiu et al. 2025,
    https://arxiv.org/abs/2505.06708, equation 5). With a value embedding each token adds a vector of its own to the
    values of each head, times 2 sigmoid of the input (https://github.com/karpathy/nanochat, gpt.py).
    """

    def __init__(self, config: TransformerConfig, layer: int, vocab_size: int = 0) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.attention_head_dim
        self.dropout = config.attention_dropout
        self.softcap = config.softcap(config.attention_softcap)
        inner, inner_kv = config.n_heads * config.attention_head_dim, config.kv_heads * config.attention_head_dim
        self.query = nn.Linear(config.d_model, inner, bias=config.attention_bias)
        self.key = nn.Linear(config.d_model, inner_kv, bias=config.attention_bias)
        self.value = nn.Linear(config.d_model, inner_kv, bias=config.attention_bias)
        self.output = nn.Linear(inner, config.d_model, bias=config.output_bias)
        self.gate = nn.Linear(config.d_model, config.gate_width, bias=False) if config.gate_width else None
        self.gate_dim = config.gate_width // config.n_heads
        embeds = config.has_value_embedding(layer)
        self.value_embedding = nn.Embedding(vocab_size, inner_kv) if embeds else None
        self.value_gate = nn.Linear(config.d_model, config.kv_heads, bias=False) if embeds else None
        self.norm_across_heads = config.qk_norm_across_heads
        widths = (inner, inner_kv) if self.norm_across_heads else (config.attention_head_dim,) * 2
        query_norm, key_norm = (RMSNorm(width, config.norm_eps, config.norm_unit_offset) for width in widths)
        self.query_norm = query_norm if config.qk_norm else None
        self.key_norm = key_norm if config.qk_norm else None
        usual = config.attention_head_dim**-0.5  # which the kernels multiply scores by
        self.query_factor = None if config.score_scale == usual else config.score_scale / usual

    def forward(
        self,
        x: Tensor,
        mask: AttentionMask,
        rotation: tuple[Tensor, Tensor] | None = None,
        kv_cache: KVCache | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """Return the attention output of x (B, T, d_model), same shape; value embeddings are of `tokens` (B, T)."""
        q, k, v = self.project(x)
        if self.norm_across_heads:
            q, k = self._normalized(q, k)
        q, k, v = self._heads(q), self._heads(k), self._heads(v)  # (B, H, T, D), and twice (B, K, T, D)
        if not self.norm_across_heads:
            q, k = self._normalized(q, k)
        if tokens is not None and self.value_embedding is not None:
            v = v + self._token_values(x, tokens).type_as(v)
        if self.query_factor is not None:
            q = q * self.query_factor
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        if kv_cache is not None:
            k, v = kv_cache.extend(self.layer, k, v)
        if self.softcap is not None:
            y = attend_capped(q, k, v, mask, self.softcap)
        else:
            y = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        if self.gate is not None:
            y = y * self._gate(self.gate(x)).type_as(y)
        return self.output(y.transpose(1, 2).flatten(2))

    def _token_values(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return what the tokens (B, T) add to the values, (B, K, T, D)."""
        assert self.value_embedding is not None
        assert self.value_gate is not None
        gates = 2.0 * self.value_gate(x).sigmoid()  # (B, T, K)
        return gates.transpose(1, 2).unsqueeze(-1) * self._heads(self.value_embedding(tokens))

    def _gate(self, logits: Tensor) -> Tensor:
        """Return the factors of the output, (B, H, T, D) or (B, H, T, 1)."""
        return logits.sigmoid().unflatten(-1, (-1, self.gate_dim)).transpose(1, 2)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return queries (B, T, H x D), keys and values (B, T, K x D) of x (B, T, d_model)."""
        return self.query(x), self.key(x), self.value(x)

    def _normalized(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.query_norm is None or self.key_norm is None:
            return q, k
        return self.query_norm(q), self.key_norm(k)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
