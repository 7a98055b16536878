"""Initial weights: each parameter has its own generator, so that they do not depend on the number of processes."""

import math
import zlib

import torch
from torch import Tensor, nn

from pretrain.models.choices import Init, ResidualInit
from pretrain.models.config import TransformerConfig

_ZERO = ("embedding_scale.weight", "value_gate.weight")
_INTO_RESIDUAL = ("attention.output.weight", "feed_forward.down.weight")


def initial_tensor(name: str, shape: torch.Size, config: TransformerConfig, seed: int) -> Tensor:
    """Return the initial value of the full parameter `name`, float32 on the CPU.

    Biases are 0, norms multiply by 1, matrices are normal with `init_std`; `residual_init=scaled` multiplies those that
    write into the residual stream by 1 / sqrt(2 n_layers), and muP those inside the model, but not embeddings and the
    head, by 1 / sqrt(width_multiplier). The draw depends on (seed, name) alone, and not on how the model is sharded.
    The scalar of a block's input starts at 1, that of the embeddings at 0; the gate of value embeddings at 0, where it
    multiplies by 1. Source: Radford et al. 2019, section 2.3; Devlin et al. 2019, reference code; Yang et al. 2022,
    https://arxiv.org/abs/2203.03466, table 8.
    """
    if name.endswith(_ZERO):
        return torch.zeros(shape)
    if name.endswith("residual_scale.weight"):
        return torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.zeros(shape) if config.norm_unit_offset else torch.ones(shape)
    std = _standard_deviation(name, config)
    if name.endswith(_INTO_RESIDUAL):
        if config.residual_init is ResidualInit.zero:
            return torch.zeros(shape)
        if config.residual_init is ResidualInit.scaled:
            std /= math.sqrt(2 * config.n_layers)
    is_matrix = name.startswith("blocks.") and not name.endswith("value_embedding.weight")  # else an input's weight
    if is_matrix or name.endswith("head.dense.weight"):
        std /= math.sqrt(config.width_multiplier)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    values = torch.empty(shape)
    if config.init is Init.truncated_normal and std > 0:
        return nn.init.trunc_normal_(values, std=std, a=-2 * std, b=2 * std, generator=generator)
    return values.normal_(std=std, generator=generator)


def _standard_deviation(name: str, config: TransformerConfig) -> float:
    of_name = {"embeddings.tokens.weight": config.embedding_init_std, "head.weight": config.head_init_std}
    own = of_name.get(name)
    return config.init_std if own is None else own


@torch.no_grad()
def initialize(model: nn.Module, config: TransformerConfig, seed: int) -> None:
    """Set every parameter of an unsharded model to its initial value, in place."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_tensor(name, parameter.shape, config, seed))
