"""A micro-batch: rows of tokens with the targets of an objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pretrain.data.collate import IGNORE


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
    @property
    def numbers(self) -> np.ndarray | None: ...
    def __getitem__(self, rows: np.ndarray, /) -> TokenRows: ...


@dataclass(frozen=True)
class Batch:
    """One micro-batch of B rows of T tokens, with M targets a row.

    An objective may read every row in P passes, each with other tokens hidden: then the model reads P B rows, those of
    a row one after the other, and `target_positions` counts through the P T positions of its passes.
    """

    tokens: Tensor  # int64 (P B, T)
    positions: Tensor  # int64 (P B, T)
    documents: Tensor | None  # int32 (P B, T); none: every row is one document
    targets: Tensor  # int64 (B, M); IGNORE where a position has no target
    target_positions: Tensor | None  # int64 (B, M): position that predicts each target; none: M = T, each its own
    sample_indices: Tensor  # int64 (B,): index of each row in the run's stream of rows
    is_causal: Tensor | None = None  # bool (B,): rows with causal attention; none: the model's default for all
    weights: Tensor | None = None  # float32 (B, M): factor of each target's loss; none: 1
    counts: Tensor | None = None  # int64 (B,): what the loss is divided by; none: the number of targets
    numbers: Tensor | None = None  # float32 (B, M): the number to predict where the target is 0 instead of IGNORE
    token_types: Tensor | None = None  # int64 (B, T): 1 in the second text of a pair; none: 0 everywhere

    @property
    def text_tokens(self) -> int:
        """The number of tokens of the rows, each once, however many passes read it."""
        return len(self.targets) * self.tokens.shape[1]

    def row_counts(self) -> Tensor:
        """Return what each row adds to the denominator of the mean loss, int64 (B,); 0 for a row without targets."""
        has_target = self.targets != IGNORE
        return has_target.sum(1) if self.counts is None else self.counts * has_target.any(1)

    def weighted(self, values: Tensor) -> Tensor:
        """Return values of the targets (B, M) times their weights; 0 where a position has no target."""
        weighted = values if self.weights is None else values * self.weights
        return weighted.where(self.targets != IGNORE, 0)

    def without_empty_places(self) -> Batch:
        """Return the batch with all targets in one row, (1, N), and none of IGNORE; its shapes depend on the values."""
        assert self.target_positions is not None
        row, slot = (self.targets != IGNORE).nonzero(as_tuple=True)
        first = row * (self.tokens.numel() // len(self.targets))  # position of each row among those of the batch
        return replace(
            self,
            targets=self.targets[row, slot][None],
            target_positions=(self.target_positions[row, slot] + first)[None],
            weights=None if self.weights is None else self.weights[row, slot][None],
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on `device`, but the sample indices on the CPU: nothing on a device reads them."""
        moved = self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(moved, sample_indices=self.sample_indices)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, which is copied to a GPU asynchronously."""
        return self.map(lambda tensor: tensor.pin_memory())

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with `function` applied to every tensor."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: None if value is None else function(value) for name, value in values.items()})  # type: ignore[arg-type]


def visible_documents(documents: np.ndarray, causal: bool) -> Tensor | None:
    """Return document numbers (B, T), or None if plain causal or full attention gives the same result.

    Padding (document -1) is at the end of a row: causal attention does not reach it, bidirectional attention needs a
    mask.
    """
    if documents.max() <= 0 and (causal or documents.min() >= 0):
        return None
    return torch.from_numpy(documents)
