"""Self-attention, and the masks that say who may see whom.

Shapes: B batch, T query positions, S key positions, H query heads, K key and value heads (K divides H), D head width.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pretrain.kernels.onednn_linear import Linear
from pretrain.models.config import TransformerConfig
from pretrain.models.masks import build_block_mask
from pretrain.models.norm import RMSNorm
from pretrain.models.position import rotate

MAX_EAGER_SCORES = 1 << 22  # of a layer: 8 MiB in bfloat16


@dataclass(frozen=True)
class AttentionMask:
    """Who may see whom in one kind of layer: as `blocks` or `allowed` say, else plain causal or unrestricted."""

    causal: bool
    allowed: Tensor | None = None  # bool (B or 1, 1, T, S)
    blocks: BlockMask | None = None  # for compiled layers on a GPU


class KVCache(Protocol):
    """Keys and values of earlier positions, kept for generation."""

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, D) keys and values of new positions; return those of all positions so far, (B, K, S, D)."""
        ...


def build_mask(
    causal: bool, window: int | None, documents: Tensor | None, length: int, device: torch.device
) -> AttentionMask:
    """Return the mask of layers with this window over rows of `length` tokens.

    `documents` (B, T) numbers the document of each token; tokens of different documents do not see each other.
    None means that every row is one document. A causal window of w sees the token itself and the w - 1 before it;
    a window of w in both directions sees w // 2 tokens to either side, as ModernBERT does.
    """
    if documents is None and (window is None or (causal and window >= length)):
        return AttentionMask(causal)
    allowed = _within(causal, window, length, device)
    if documents is not None:
        allowed = allowed & _same_document(documents)
    return AttentionMask(causal, allowed)


def build_mixed_mask(is_causal: Tensor, window: int | None, documents: Tensor | None, length: int) -> AttentionMask:
    """Return the mask of a batch whose rows are causal where `is_causal` (bool (B,)) says so, both ways else.

    The other arguments are those of `build_mask`, row by row.
    """
    causal, both_ways = (_within(causal, window, length, is_causal.device) for causal in (True, False))
    allowed = torch.where(is_causal.view(-1, 1, 1, 1), causal, both_ways)
    return AttentionMask(False, allowed if documents is None else allowed & _same_document(documents))


def build_mask_in_blocks(
    causal: bool | Tensor, window: int | None, documents: Tensor | None, like: Tensor
) -> AttentionMask:
    """Return what `build_mask` does, or with `causal` by row `build_mixed_mask`, for compiled layers on a GPU.

    `like` (B, T) tells the shape where every row is one document.
    """
    documents = torch.zeros_like(like, dtype=torch.int32) if documents is None else documents
    return AttentionMask(causal is True, blocks=build_block_mask(causal, window, documents))


def _same_document(documents: Tensor) -> Tensor:
    return (documents.unsqueeze(1) == documents.unsqueeze(2)).unsqueeze(1)  # (B, 1, T, S)


def _within(causal: bool, window: int | None, length: int, device: torch.device) -> Tensor:
    """Return who may see whom by direction and distance alone, bool (1, 1, T, S)."""
    places = torch.arange(length, device=device)
    distance = places.unsqueeze(1) - places  # (T, S), positive when the key comes first
    allowed = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        allowed = allowed & (distance < window if causal else distance.abs() <= window // 2)
    return allowed.view(1, 1, length, length)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: float) -> Tensor:
    """Return the values that each query sees, weighted, (B, H, T, D), of queries (B, H, T, D) and keys (B, K, S, D).

    In bfloat16 a processor learns quicker by plain products of matrices than by torch's fused attention as long as the
    scores, (B, H, T, S), stay few: its backward pass takes no less time than in float32 (torch 2.13).
    """
    if mask.blocks is not None:
        q, k = q.to(v.dtype), k.to(v.dtype)  # normed ones are in float32 under autocast, which knows no flex_attention
        found = flex_attention(q, k, v, block_mask=mask.blocks, enable_gqa=q.shape[1] != k.shape[1])
        assert isinstance(found, Tensor)
        return found
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
    """Whether to attend by products: in bfloat16, on a processor, to learn, with few scores."""
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
    return dtype is torch.bfloat16 and q.shape[:3].numel() * k.shape[2] <= MAX_EAGER_SCORES


def _eager_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: float) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    allowed = mask.allowed
    if allowed is None and mask.causal:
        allowed = _within(True, None, q.shape[2], q.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return F.dropout(scores.softmax(-1), dropout) @ v


class Attention(nn.Module):
    """Self-attention with grouped keys and values, optional rotary positions and query-key norms.

    Source: Vaswani et al. 2017, section 3.2; Ainslie et al. 2023, https://arxiv.org/abs/2305.13245, section 2.2.
    """

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.attention_head_dim
        self.dropout = config.attention_dropout
        inner, inner_kv = config.n_heads * config.attention_head_dim, config.kv_heads * config.attention_head_dim
        self.query = Linear(config.d_model, inner, bias=config.attention_bias)
        self.key = Linear(config.d_model, inner_kv, bias=config.attention_bias)
        self.value = Linear(config.d_model, inner_kv, bias=config.attention_bias)
        self.output = Linear(inner, config.d_model, bias=config.bias)
        self.query_norm = RMSNorm(config.attention_head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm(config.attention_head_dim, eps=config.norm_eps) if config.qk_norm else None

    def forward(
        self,
        x: Tensor,
        mask: AttentionMask,
        rotation: tuple[Tensor, Tensor] | None = None,
        kv_cache: KVCache | None = None,
    ) -> Tensor:
        """Return what each position of x (B, T, d_model) gathers from the positions it may see, same shape."""
        q, k, v = (self._heads(each) for each in self.project(x))  # (B, H, T, D), and twice (B, K, T, D)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        if kv_cache is not None:
            k, v = kv_cache.extend(self.layer, k, v)
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.output(y.transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return queries (B, T, H x D), and keys and values (B, T, K x D), of x (B, T, d_model)."""
        return self.query(x), self.key(x), self.value(x)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
