"""AdamW with decay on matrices only."""

import torch
from torch import nn

from pretrain.optim.config import AdamWConfig
from pretrain.optim.groups import parameter_names, parameters_by_name


def build_adamw(config: AdamWConfig, model: nn.Module) -> torch.optim.AdamW:
    """Return fused AdamW over two groups, matrices that decay and the rest that does not."""
    names = parameter_names(model)
    parameters = parameters_by_name(model)
    groups = [
        {"params": [parameters[name] for name in names.matrices + names.head], "weight_decay": config.weight_decay},
        {"params": [parameters[name] for name in names.rest], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
