"""What a step trains on: rows of tokens with the targets that an objective chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class TokenRows(Protocol):
    """Packed rows as the store gives them; all arrays (B, T)."""

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
    targets: Tensor  # int64 (B, M); IGNORE where there is nothing to predict
    target_positions: (
        Tensor | None
    )  # int64 (B, M): position of each target; none: M = T and target i stands at position i
    sample_indices: Tensor  # int64 (B,): place of each row in the run's endless stream of rows
    is_causal: Tensor | None = None  # bool (B,): rows read from left to right; none: all as the model does by itself

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which copies to a GPU need not wait."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: None if value is None else change(value) for name, value in values.items()})  # type: ignore[arg-type]


def visible_documents(rows: TokenRows, causal: bool) -> Tensor | None:
    """Return document numbers (B, T), or none where plain attention sees the same.

    Padding (document -1) stands at the end of a row: a causal model cannot see it, a bidirectional one must be told.
    """
    if rows.documents.max() <= 0 and (causal or rows.documents.min() >= 0):
        return None
    return torch.from_numpy(rows.documents)
