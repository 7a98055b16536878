"""Steps that the device skips by itself: no process waits to learn whether a gradient was finite.

An optimizer that takes part has an attribute `found_inf`, None or a tensor () on the weights' device, as torch's fused
optimizers have. A step in which it is 1.0 leaves weights and state equal to the bit, step counters included.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def skips_on_device(optimizer: Optimizer) -> bool:
    """Return whether a step with `optimizer.found_inf` = 1.0 changes neither weights nor state.

    A class of this project says so by an attribute `takes_found_inf` of its own: a subclass may do more in its step.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(parameter.device.type not in ("cpu", "cuda") for parameter in parameters):
        return False
    is_fused = type(optimizer) is torch.optim.AdamW and all(group["fused"] for group in optimizer.param_groups)
    return is_fused or bool(vars(type(optimizer)).get("takes_found_inf", False))


def skipped(found_inf: Tensor | None) -> Tensor | None:
    """Return whether a step is skipped, bool (); None if it certainly is not."""
    return None if found_inf is None else found_inf != 0


def assign_unless(skips: Tensor | None, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Set `tensors` to `values`, which may be NaN where `skips` () holds: then nothing changes."""
    kept, new = local_parts(tensors), local_parts(values)
    if skips is None:
        torch._foreach_copy_(kept, new)
        return
    for tensor, value in zip(kept, new, strict=True):
        torch.where(skips, tensor, value, out=tensor)


def fill_if(skips: Tensor | None, tensors: Sequence[Tensor], value: float) -> None:
    """Set every number of `tensors` to `value` where `skips` () holds; 0 times NaN would be NaN."""
    if skips is not None:
        for tensor in local_parts(tensors):
            tensor.masked_fill_(skips, value)


@lru_cache(maxsize=64)
def constants(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return constant numbers on a device; to copy them there at each step would wait for the device's work."""
    return torch.tensor(numbers, dtype=dtype, device=device)


def local_parts(tensors: Sequence[Any]) -> list[Tensor]:
    """Return this process's parts of tensors that may be sharded; they share memory."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
