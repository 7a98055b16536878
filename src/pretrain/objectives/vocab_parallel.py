"""A vocabulary split over devices: each one's shard, and the reductions that the loss needs.

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
    """The rows `start` to `start + size` of the vocabulary matrix, which this process holds."""

    start: int
    size: int
    largest_size: int  # of any shard
    group: ProcessGroup | None = None  # the processes that share the vocabulary; None: it is not split

    @classmethod
    def of(cls, weight: Tensor) -> VocabularyShard:
        """Return this process's shard of a vocabulary matrix (V, d_model)."""
        if not isinstance(weight, DTensor):
            return cls(0, len(weight), len(weight))
        mesh = weight.device_mesh
        largest = -(-len(weight) // mesh.size())  # of every process but the last ones
        start = min(mesh.get_local_rank() * largest, len(weight))
        return cls(start, min(largest, len(weight) - start), largest, mesh.get_group())

    def find(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return each target's local row, 0 if another shard holds it, and whether it is local; both (N, 1)."""
        rows = targets.unsqueeze(1) - self.start
        is_local = (rows >= 0) & (rows < self.size)
        return rows.where(is_local, 0), is_local

    def maximum(self, values: Tensor) -> Tensor:
        """Return the element-wise maximum over all shards, same shape, in place."""
        return self._reduce(values, ReduceOp.MAX)

    def minimum(self, values: Tensor) -> Tensor:
        """Return the element-wise minimum over all shards, same shape, in place."""
        return self._reduce(values, ReduceOp.MIN)

    def total(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over all shards, same shape, in place."""
        return self._reduce(values, ReduceOp.SUM)

    def _reduce(self, values: Tensor, operation: ReduceOp.RedOpType) -> Tensor:
        if self.group is not None:
            torch.distributed.all_reduce(values, operation, self.group)
        return values


def local(tensor: Tensor) -> Tensor:
    """Return the rows of a vocabulary matrix or bias that this process holds; gradients flow back."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
