"""Initial weights, the same for any number of processes: each parameter draws from a generator of its own."""

import math
import zlib

import torch
from torch import Tensor, nn

from pretrain.models.config import Init, ResidualInit, TransformerConfig

_INTO_RESIDUAL = ("attention.output.weight", "feed_forward.down.weight")


def initial_tensor(name: str, shape: torch.Size, config: TransformerConfig, seed: int) -> Tensor:
    """Return the initial value, float32 on the CPU, of the parameter called `name` in the whole model.

    Biases are 0, norm weights 1, matrices normal with `init_std`; those that write into the residual stream are scaled
    by 1 / sqrt(2 n_layers) where `residual_init` asks for it. Source: Radford et al. 2019, section 2.3; Devlin et al.
    2019, reference code. The draw depends on (seed, name) alone, so it is the same however the model is sharded.
    """
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    std = config.init_std
    if name.endswith(_INTO_RESIDUAL):
        if config.residual_init is ResidualInit.zero:
            return torch.zeros(shape)
        if config.residual_init is ResidualInit.scaled:
            std /= math.sqrt(2 * config.n_layers)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    values = torch.empty(shape)
    if config.init is Init.truncated_normal:
        return nn.init.trunc_normal_(values, std=std, a=-2 * std, b=2 * std, generator=generator)
    return values.normal_(std=std, generator=generator)


@torch.no_grad()
def initialize(model: nn.Module, config: TransformerConfig, seed: int) -> None:
    """Fill every parameter of a model that lives on one device, in place."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_tensor(name, parameter.shape, config, seed))
