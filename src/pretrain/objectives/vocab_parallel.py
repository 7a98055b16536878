"""A vocabulary that several devices split: what a loss must ask the others.

Source: Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053, section 3 (the cross-entropy of a parallel output layer).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class VocabularyShard:
    """The tokens from `start` on, `size` of them, whose rows of the vocabulary matrix this process holds."""

    start: int
    size: int
    largest_size: int  # of any shard
    group: ProcessGroup | None = None  # the processes that hold the vocabulary together; none: it is whole

    @classmethod
    def of(cls, weight: Tensor) -> VocabularyShard:
        """Return the shard that this process holds of a vocabulary matrix (V, d_model)."""
        if not isinstance(weight, DTensor):
            return cls(0, len(weight), len(weight))
        mesh = weight.device_mesh
        most = -(-len(weight) // mesh.size())  # every process has so many but the last ones
        start = min(mesh.get_local_rank() * most, len(weight))
        return cls(start, min(most, len(weight) - start), most, mesh.get_group())

    def find(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return each target's row here, 0 where it is not, and whether it is here; both (N, 1)."""
        rows = targets.unsqueeze(1) - self.start
        here = (rows >= 0) & (rows < self.size)
        return rows.where(here, 0), here

    def maximum(self, values: Tensor) -> Tensor:
        """Return the largest value over all shards, element by element; of the same shape, in place."""
        return self._reduce(values, ReduceOp.MAX)

    def minimum(self, values: Tensor) -> Tensor:
        """Return the smallest value over all shards, element by element; of the same shape, in place."""
        return self._reduce(values, ReduceOp.MIN)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all shards, element by element; of the same shape, in place."""
        return self._reduce(values, ReduceOp.SUM)

    def _reduce(self, values: Tensor, how: ReduceOp.RedOpType) -> Tensor:
        if self.group is not None:
            torch.distributed.all_reduce(values, how, self.group)
        return values


def local(tensor: Tensor) -> Tensor:
    """Return the rows of a vocabulary matrix or bias that this process holds; gradients flow back."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
