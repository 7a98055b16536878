"""The precision of a run: what `auto` means on a device, and the dtype of matmuls."""

import torch

from pretrain.kernels.device import bf16_is_fast, fp16_is_fast
from pretrain.training.config import Precision

_HALF_DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


def half_dtype(precision: Precision) -> torch.dtype | None:
    """Return the 16-bit dtype of a precision's matmuls; None for fp32. `auto` must have been resolved."""
    return _HALF_DTYPES.get(precision)


def auto_precision(device: torch.device) -> Precision:
    """Return the precision that `auto` means on a device: that of its fastest matmuls."""
    if bf16_is_fast(device):
        return Precision.bf16
    return Precision.fp16 if fp16_is_fast(device) else Precision.fp32


def autocast(device_type: str, half: torch.dtype | None) -> torch.autocast:
    """Return a context in which matmuls compute in `half`; None computes in the dtype of the weights.

    A weight is cast at each use: a cached copy that was made without gradients would later be used with them.
    """
    return torch.autocast(device_type, half or torch.bfloat16, enabled=half is not None, cache_enabled=False)
