"""Normalisation layers."""

from torch import nn

from pretrain.models.config import Norm, TransformerConfig


def build_norm(config: TransformerConfig, width: int) -> nn.Module:
    """Return the norm that `config` names over the last axis, `width` channels wide."""
    if config.norm is Norm.rms:
        return nn.RMSNorm(width, eps=config.norm_eps)
    return nn.LayerNorm(width, eps=config.norm_eps, bias=config.norm_bias)
