"""A Llama in a page of PyTorch, as torchtitan trains one: blocks compiled one by one, SDPA, cross-entropy in chunks.

Written from the description of its README (https://github.com/pytorch/torchtitan): each block is compiled, attention is
SDPA without masks of documents, and the loss is computed chunk by chunk so that memory never holds all logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNKS = 8  # of the loss
ROPE_BASE = 500_000.0


class PlainLlamaBlock(nn.Module):
    """Attention with grouped keys and values and rotary positions, then a gated feed-forward layer."""

    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int, d_ff: int) -> None:
        super().__init__()
        self.head_dim = d_model // n_heads
        self.attention_norm = nn.RMSNorm(d_model, eps=1e-5)
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, n_kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(d_model, n_kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.feed_forward_norm = nn.RMSNorm(d_model, eps=1e-5)
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Return the block's output for x (B, T, d_model), same shape; cosines and sines are (T, head_dim)."""
        h = self.attention_norm(x)
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in (self.query(h), self.key(h), self.value(h))
        )
        q, k = (_rotated(part, cosine, sine) for part in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        h = self.feed_forward_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * cosine + torch.cat([-second, first], dim=-1) * sine).to(x.dtype)


class PlainLlama(nn.Module):
    """Embedding, blocks and a final norm; the head is the embedding's matrix."""

    def __init__(self, vocab_size: int, n_layers: int, d_model: int, n_heads: int, n_kv_heads: int, d_ff: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.blocks = nn.ModuleList(PlainLlamaBlock(d_model, n_heads, n_kv_heads, d_ff) for _ in range(n_layers))
        self.norm = nn.RMSNorm(d_model, eps=1e-5)
        self.head_dim = d_model // n_heads
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the last hidden states (B, T, d_model) of tokens (B, T)."""
        places = torch.arange(tokens.shape[1], device=tokens.device).float()
        exponents = torch.arange(0, self.head_dim, 2, device=tokens.device).float() / self.head_dim
        angles = torch.outer(places, ROPE_BASE**-exponents).repeat(1, 2)
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x, angles.cos(), angles.sin())
        x = self.norm(x)
        assert isinstance(x, Tensor)
        return x

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy () of tokens (B, T) against targets (B, T), of which -100 has none."""
        hidden, wanted = self(tokens).flatten(0, 1), targets.flatten()
        total = torch.zeros((), device=tokens.device)
        for part, target in zip(hidden.chunk(CHUNKS), wanted.chunk(CHUNKS), strict=True):
            loss = checkpoint(_summed_loss, part, self.tokens.weight, target, use_reentrant=False)
            assert isinstance(loss, Tensor)
            total = total + loss
        return total / (wanted != -100).sum()


def _summed_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
