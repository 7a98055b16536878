"""Parameter groups by the module that owns each parameter, and AdamW over them."""

from dataclasses import dataclass, field

import torch
from torch import nn

from pretrain.optim.config import AdamWConfig


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model, shared ones once, by name without the prefixes of wrappers."""
    return {
        name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", ""): parameter
        for name, parameter in model.named_parameters()
    }


@dataclass
class ParameterNames:
    """Names of a model's trained parameters by role; every one is in exactly one list."""

    matrices: list[str] = field(default_factory=list)  # weights of linear layers inside blocks: decay, Muon
    head: list[str] = field(default_factory=list)  # other linear weights, as of an untied head: decay
    rest: list[str] = field(default_factory=list)  # embeddings, norms, biases: no decay


def parameter_names(model: nn.Module) -> ParameterNames:
    """Return the trained parameters of `model` by role; a head tied to the embedding counts as an embedding."""
    names = ParameterNames()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    for name, parameter in parameters_by_name(model).items():
        if not parameter.requires_grad:
            continue
        if id(parameter) in embeddings or name.endswith("bias") or "norm" in name:
            names.rest.append(name)
        elif id(parameter) in linear and ".blocks." in f".{name}":
            names.matrices.append(name)
        else:
            names.head.append(name)
    return names


def build_adamw(config: AdamWConfig, model: nn.Module) -> torch.optim.AdamW:
    """Return fused AdamW over two groups: matrices, which decay, and the rest, which does not."""
    names, parameters = parameter_names(model), parameters_by_name(model)
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
