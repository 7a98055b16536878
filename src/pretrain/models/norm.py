"""Normalization layers."""

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.config import Norm, TransformerConfig


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm in the number format of its input: a weight in another one would rule out the fused kernel.

    Source: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., width) divided by its root mean square and scaled, same shape and format."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def build_norm(config: TransformerConfig, width: int) -> nn.Module:
    """Return the norm that `config` names over the last axis, `width` channels wide."""
    if config.norm is Norm.rms:
        return RMSNorm(width, eps=config.norm_eps)
    return nn.LayerNorm(width, eps=config.norm_eps, bias=config.norm_bias)
