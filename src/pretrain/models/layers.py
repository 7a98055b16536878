"""The norms and the feed-forward layer of a block."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.kernels.gelu import gelu_tanh
from pretrain.models.choices import Activation, Norm
from pretrain.models.config import TransformerConfig


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm; its weight is cast to the input's dtype, which the fused kernel requires.

    With `unit_offset` it multiplies by 1 + weight. Source: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """

    def __init__(self, width: int, eps: float, unit_offset: bool = False) -> None:
        super().__init__(width, eps=eps)
        self.unit_offset = unit_offset

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., C) divided by its root mean square and scaled, same shape and dtype."""
        weight = 1.0 + self.weight if self.unit_offset else self.weight
        return F.rms_norm(x, self.normalized_shape, weight.to(x.dtype), self.eps)


def build_norm(config: TransformerConfig) -> nn.Module:
    """Return the norm of `config.norm` over the last axis, d_model channels."""
    if config.norm is Norm.rms:
        return RMSNorm(config.d_model, config.norm_eps, config.norm_unit_offset)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.norm_bias)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Return the element-wise non-linearity of `activation`; of a gated one, its gate's."""
    if activation is Activation.swiglu:
        return F.silu(x)
    if activation is Activation.relu2:
        return F.relu(x).square()
    return gelu_tanh(x) if activation in (Activation.gelu_tanh, Activation.geglu_tanh) else F.gelu(x)


class Scale(nn.Module):
    """A learned factor of all numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (...) times the factor, same shape and dtype."""
        return x * self.weight.to(x.dtype)


class FeedForward(nn.Module):
    """Two matrices with a non-linearity between them, or three if gated."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation = config.feed_forward
        self.gate = nn.Linear(config.d_model, config.ff_width, bias=config.bias) if config.gated else None
        self.up = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.down = nn.Linear(config.ff_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for x (B, T, d_model), same shape."""
        if self.gate is None:
            return self.down(activate(self.up(x), self.activation))
        return self.down(activate(self.gate(x), self.activation) * self.up(x))
