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

    half_stream = False  # the residual stream is in 16 bits: normalize in float32, by a weight that is not rounded

    def __init__(self, width: int, eps: float, unit_offset: bool = False) -> None:
        super().__init__(width, eps=eps)
        self.unit_offset = unit_offset

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., C) divided by its root mean square and scaled, same shape and dtype.

        With `half_stream` the result is float32 under autocast, as on a GPU in any case.
        """
        if self.half_stream and torch.is_autocast_enabled(x.device.type):
            x = x.float()
        weight = 1.0 + self.weight if self.unit_offset else self.weight
        return F.rms_norm(x, self.normalized_shape, weight.to(x.dtype), self.eps)


def build_norm(config: TransformerConfig) -> nn.Module:
    """Return the norm of `config.norm` over the last axis, d_model channels."""
    if config.norm is Norm.rms:
        return RMSNorm(config.d_model, config.norm_eps, config.norm_unit_offset)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.norm_bias)


class ResidualStream(nn.Module):
    """Stands where numbers enter the residual stream, to give them its dtype."""

    half_stream = False  # whether that is autocast's

    def forward(self, x: Tensor) -> Tensor:
        """Return x (...), same shape, in autocast's 16 bits if `half_stream` is set and autocast is on."""
        kind = x.device.type
        if not (self.half_stream and torch.is_autocast_enabled(kind)):
            return x
        return x.to(torch.get_autocast_dtype(kind))


def has_residual_stream(model: nn.Module) -> bool:
    """Whether a model's residual stream is one that `use_half_stream` can change."""
    return any(isinstance(module, ResidualStream) for module in model.modules())


def use_half_stream(model: nn.Module) -> None:
    """Keep a model's residual stream in 16 bits under autocast, in place.

    Embeddings and every norm whose output is added to the stream or becomes it are cast, so that sums of the stream
    are in 16 bits. Norms still compute in float32. Without autocast, as in generation, nothing changes.
    """
    for module in model.modules():
        if isinstance(module, ResidualStream | RMSNorm):
            module.half_stream = True


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
