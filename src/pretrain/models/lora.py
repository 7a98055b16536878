"""LoRA: low-rank adapters beside the matrices of a model, and their merge into these.

A matrix W (N, K) with an adapter computes W x + scale b (a x), with a (rank, K), b (N, rank), scale = alpha / rank.
Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1.
"""

import zlib
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import ConfigError
from pretrain.models.lora_config import LoraConfig

A, B = ".lora.a", ".lora.b"  # after the name of the matrix' module

Values = Callable[[str, torch.Size], Tensor]  # of a parameter by its name and full shape


class Adapter(nn.Module):
    """The low-rank part of one matrix."""

    def __init__(self, linear: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        device = linear.weight.device
        self.scale, self.dropout = config.scale, config.dropout
        self.a = nn.Parameter(torch.empty(config.rank, linear.in_features, device=device))
        self.b = nn.Parameter(torch.empty(linear.out_features, config.rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the adapter adds to the output of its matrix for x (..., K), (..., N)."""
        return F.linear(F.linear(F.dropout(x, self.dropout, self.training), self.a), self.b) * self.scale


def add_adapters(model: nn.Module, config: LoraConfig, trained: str | None = None) -> None:
    """Give the matrices that `lora.targets` names an adapter, in place, and freeze all other parameters.

    Parameters whose names begin with `trained` stay trainable, such as a new head. Changes nothing with rank 0. Raises
    ConfigError for a pattern that matches no matrix.
    """
    if not config.is_on:
        return
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = {name for pattern in config.targets for name in _matching(pattern, linears)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained is not None and name.startswith(trained))
    for name in linears:
        if name in chosen:
            linears[name].lora = Adapter(linears[name], config)
            linears[name].register_forward_hook(_add_output)  # works with every class of linear layer


def _add_output(linear: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    y: Tensor = linear.lora(inputs[0])
    return output + y


def _matching(pattern: str, linears: Collection[str]) -> list[str]:
    found = [name for name in linears if fnmatchcase(f"{name}.weight", pattern) or fnmatchcase(name, pattern)]
    if not found:
        raise ConfigError(
            f"lora.targets has {pattern!r}, which matches no matrix of the model. It has "
            f"{', '.join(f'{name}.weight' for name in list(linears)[:8])} and so on. Try 'lora.targets=[blocks.*]'."
        )
    return found


def adapted(parameters: Collection[str]) -> list[str]:
    """Return the names of the modules that have an adapter, from the names of a model's parameters."""
    return [name.removesuffix(A) for name in parameters if name.endswith(A)]


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return name.endswith((A, B))


def initial_adapter(name: str, size: torch.Size, seed: int) -> Tensor:
    """Return the first value of an adapter's parameter: b is 0, a uniform in +-1 / sqrt(K); float32 on the CPU.

    The draw depends on (seed, name) alone.
    """
    if name.endswith(B):
        return torch.zeros(size)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    return (2.0 * torch.rand(size, generator=generator) - 1.0) / size[-1] ** 0.5


def merged(name: str, weight: Tensor, adapters: Callable[[str], Tensor], scale: float) -> Tensor:
    """Return the matrix `name` (N, K) with its adapter added, computed in float32, in the dtype of `weight`.

    `adapters(parameter)` returns the values of the adapter's parameters.
    """
    module = name.removesuffix(".weight")
    added = adapters(module + B).float() @ adapters(module + A).float()
    return (weight.float() + scale * added).to(weight.dtype)


def trainable(model: nn.Module) -> int:
    """Return how many numbers of a model are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
