"""The state of a user's callback as plain data of a checkpoint's manifest, and back. Nothing is pickled."""

import math
from typing import Any

import torch
from torch import Tensor

MAX_VALUES = 10_000  # of one callback's state; the manifest is read as a whole
_TENSOR, _FLOAT = "__tensor__", "__float__"


def to_plain(value: Any) -> Any:
    """Return a state as data that JSON can hold: numbers, texts, lists, mappings, small tensors.

    Raises TypeError for anything else, ValueError for more than MAX_VALUES values.
    """
    found, count = _plain(value)
    if count > MAX_VALUES:
        raise ValueError(f"it has {count:,} values, and at most {MAX_VALUES:,} are saved")
    return found


def _plain(value: Any) -> tuple[Any, int]:
    if value is None or isinstance(value, bool | int | str):
        return value, 1
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: str(value)}, 1
    if isinstance(value, Tensor):
        if value.numel() > MAX_VALUES or value.is_complex():
            raise TypeError(f"it holds a tensor of {value.numel():,} values of {value.dtype}")
        items = [_plain(item)[0] for item in value.detach().cpu().flatten().tolist()]
        return {_TENSOR: items, "shape": list(value.shape), "dtype": str(value.dtype)}, value.numel()
    if isinstance(value, list | tuple):
        parts = [_plain(item) for item in value]
        return [part for part, _ in parts], 1 + sum(count for _, count in parts)
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        named = {name: _plain(item) for name, item in value.items()}
        return {name: part for name, (part, _) in named.items()}, 1 + sum(count for _, count in named.values())
    raise TypeError(f"it holds a {type(value).__name__}")


def from_plain(value: Any) -> Any:
    """Return the state that `to_plain` wrote, tensors on the CPU; raises ValueError for what it has not written."""
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _FLOAT in value:
        return float(value[_FLOAT])
    if _TENSOR not in value:
        return {name: from_plain(item) for name, item in value.items()}
    dtype = getattr(torch, str(value.get("dtype")).removeprefix("torch."), None)
    items = from_plain(value[_TENSOR])
    if not isinstance(dtype, torch.dtype) or not isinstance(items, list):
        raise ValueError("it holds a damaged tensor")
    return torch.tensor(items, dtype=dtype).reshape(list(value.get("shape", [])))
