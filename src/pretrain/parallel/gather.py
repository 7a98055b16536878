"""Convert between full tensors and the shards that this process holds."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from pretrain.optim.groups import parameters_by_name

# to gather what two axes of a mesh split takes two steps, of which torch warns every time
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor; for a sharded one every process of its mesh must call this together."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return `value`, a full tensor on every process, with the device and sharding of `parameter`.

    Nothing is sent: each process keeps its part.
    """
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


@torch.no_grad()
def load_parameters(model: nn.Module, values: Callable[[str, torch.Size], Tensor]) -> None:
    """Give every parameter the value that `values(name, full_tensor shape)` returns; each process keeps its part.

    Values are made on the CPU, whatever the caller's device is: Lightning builds models on the GPU, where the same seed
    draws other numbers.
    """
    for name, parameter in parameters_by_name(model).items():
        with torch.device("cpu"):
            value = values(name, parameter.shape)
        parameter.copy_(distribute_like(value, parameter))
