"""Keys and values of earlier positions, cached so that each new token costs one position.

Shapes: B batch, K key and value heads, T new positions, S positions so far, D head dimension.
"""

import torch
from torch import Tensor

from pretrain.models.config import TransformerConfig
from pretrain.models.masks import AttentionMask, dense_mask, mask_mod


class StaticKVCache:
    """One allocation of (layers, 2, B, K, length, D), filled as a prompt is read and continued."""

    def __init__(
        self, config: TransformerConfig, padding: Tensor, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.n_layers, 2, len(padding), config.kv_heads, length, config.attention_head_dim)
        self.store = torch.empty(shape, dtype=dtype, device=device)
        self.padding = padding  # int64 (B,): padding positions at the start of each row
        self.padded = bool(padding.any())
        self.filled = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, D) keys and values of new positions; return those of all positions so far, (B, K, S, D)."""
        end = self.filled + key.shape[2]
        keys, values = self.store[layer]
        keys[:, :, self.filled : end] = key
        values[:, :, self.filled : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def masks(self, new: int, windows: set[int | None]) -> dict[int | None, AttentionMask]:
        """Return the attention mask of `new` positions for each sliding window."""
        return {window: self._mask(new, window) for window in windows}

    def _mask(self, new: int, window: int | None) -> AttentionMask:
        total = self.filled + new
        if not self.padded and (window is None or window >= total) and (new == 1 or self.filled == 0):
            return AttentionMask(causal=new > 1)  # one new position attends to all; a fresh prompt is plain causal
        positions = torch.arange(total, device=self.padding.device)
        is_prompt = positions >= self.padding.unsqueeze(1)  # (B, S); padding attends to padding: no row may be empty
        rule = mask_mod(True, window, is_prompt)
        return AttentionMask(True, dense_mask(rule, positions[self.filled :], positions, len(self.padding)))
