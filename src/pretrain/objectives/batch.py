"""A micro-batch: rows of tokens with the targets of an objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class TokenRows(Protocol):
    """Packed rows as read from the store; all arrays (B, T)."""

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def next_tokens(self) -> np.ndarray: ...
    @property
    def positions(self) -> np.ndarray: ...
    @property
    def documents(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray | None: ...


@dataclass(frozen=True)
class Batch:
    """One micro-batch of B rows of T tokens, with M targets a row."""

    tokens: Tensor  # int64 (B, T)
    positions: Tensor  # int64 (B, T)
    documents: Tensor | None  # int32 (B, T); none: every row is one document
    targets: Tensor  # int64 (B, M); IGNORE where a position has no target
    target_positions: Tensor | None  # int64 (B, M): position that predicts each target; none: M = T, each its own
    sample_indices: Tensor  # int64 (B,): index of each row in the run's stream of rows
    is_causal: Tensor | None = None  # bool (B,): rows with causal attention; none: the model's default for all

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on `device`, with the sample indices on the CPU: nothing on a device reads them."""
        moved = self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(moved, sample_indices=self.sample_indices)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, which is copied to a GPU asynchronously."""
        return self.map(lambda tensor: tensor.pin_memory())

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with `function` applied to every tensor."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: None if value is None else function(value) for name, value in values.items()})  # type: ignore[arg-type]


def visible_documents(rows: TokenRows, causal: bool) -> Tensor | None:
    """Return document numbers (B, T), or None if plain causal or full attention gives the same result.

    Padding (document -1) is at the end of a row: causal attention does not reach it, bidirectional attention needs a
    mask.
    """
    if rows.documents.max() <= 0 and (causal or rows.documents.min() >= 0):
        return None
    return torch.from_numpy(rows.documents)
