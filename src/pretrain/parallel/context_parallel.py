"""Context parallelism: neighboring devices split the positions of every row, and gather its keys and values.

Each device computes the queries of its slice against the keys and values of the whole row, which one all-gather per
layer brings together; the backward pass sums their gradients by one reduce-scatter. Source: Grattafiori et al. 2024,
https://arxiv.org/abs/2407.21783, section 3.3.2.

A row of n devices is cut into 2 n equal chunks, and device i holds chunks i and 2 n - 1 - i: under causal attention a
late chunk attends to more positions than an early one, and every such pair to equally many.

Shapes: B rows, P passes of the model over each, T positions, t = T / n positions of a slice, M targets of a row.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import all_gather_single
from torch.distributed.device_mesh import init_device_mesh

from pretrain.data.collate import IGNORE
from pretrain.models.interface import through_head
from pretrain.models.masks import BLOCK, AttentionMask, build_slice_block_mask, build_slice_mask
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.config import ParallelDims

CONTEXT = "context"  # axis of the mesh


def build_row_split(parallel_dims: ParallelDims, device_type: str) -> "RowSplit | None":
    """Return this process's part of every row; None if rows are not split. Every process must call this."""
    if parallel_dims.context == 1:
        return None
    shape = (parallel_dims.data_ranks, parallel_dims.context, parallel_dims.tensor)
    mesh = init_device_mesh(device_type, shape, mesh_dim_names=("data", CONTEXT, "tensor"))[CONTEXT]
    return RowSplit(mesh.get_group(), mesh.get_local_rank(), mesh.size())


class GatheredRow:
    """Takes the place of a KV cache: completes the keys and values of a slice to those of the row."""

    def __init__(self, group: ProcessGroup, size: int) -> None:
        self.group = group
        self.size = size

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, K, T, D) of the row, in order of position, from those of slices (B, K, t, D)."""
        own = torch.stack((key.to(value.dtype), value))  # in one message; attention casts keys to this dtype anyway
        every = all_gather_single(own, gather_dim=0, group=self.group)
        chunks = every.unflatten(0, (self.size, 2)).unflatten(-2, (2, -1))  # (n, 2, B, K, 2, t / 2, D)
        early, late = chunks.unbind(4)
        row = torch.cat((early, late.flip(0))).movedim(0, 3).flatten(3, 4)  # (2, B, K, T, D)
        return row[0], row[1]


class RowSplit:
    """Computes loss and evaluation of a batch from this process's slice of its rows.

    Every process of the group is called with the same batch.
    """

    def __init__(self, group: ProcessGroup, rank: int, size: int) -> None:
        self.group = group
        self.rank = rank
        self.size = size

    def loss(self, model_with_loss: ModelWithLoss, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed loss of this slice, float32 (), and the targets of the whole batch on one process, int64.

        The others return 0 targets, so that sums over the processes of a group are those of the batch.
        """
        part, _ = self.part_of(batch)
        hidden = self._hidden(model_with_loss, part)
        loss, _ = through_head(model_with_loss.model.head, model_with_loss.objective, hidden, part)
        count = batch.row_counts().sum()
        return loss, count if self.rank == 0 else torch.zeros_like(count)

    def evaluate(self, model_with_loss: ModelWithLoss, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return losses (B, M) in nats and predictions (B, M) of all targets, equal on every process of the group."""
        part, index = self.part_of(batch)
        hidden = self._hidden(model_with_loss, part)
        values = through_head(model_with_loss.model.head, model_with_loss.objective.evaluate, hidden, part)
        losses, predictions = (
            torch.zeros(batch.targets.shape, dtype=each.dtype, device=each.device).scatter(
                1, index, each.where(part.targets != IGNORE, 0)
            )
            for each in values
        )
        torch.distributed.all_reduce(losses, group=self.group)
        torch.distributed.all_reduce(predictions, group=self.group)
        return losses, predictions

    def positions(self, length: int, device: torch.device) -> Tensor:
        """Return the positions in a row of `length` that this process holds, int64 (t,)."""
        chunks = torch.arange(length, device=device).view(2 * self.size, -1)
        return torch.cat((chunks[self.rank], chunks[-1 - self.rank]))

    def part_of(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Return this process's slice of a batch, and the index of its m targets in those of a row, int64 (B, m).

        Documents stay those of whole rows, which masks need. m is t where each position has a target of its own, else
        the smaller of M and P t, so that shapes are static; places that are left over have no target.
        """
        length, device = batch.tokens.shape[1], batch.tokens.device
        queries = self.positions(length, device)
        if batch.target_positions is None:
            index, positions = queries.expand(len(batch.targets), -1), None
            targets = batch.targets[:, queries]
        else:
            slot_of = torch.full((length,), -1, device=device)  # of each position: where the slice holds it
            slot_of[queries] = torch.arange(len(queries), device=device)
            held = (slot_of[batch.target_positions % length] >= 0) & (batch.targets != IGNORE)
            passes = len(batch.tokens) // len(batch.targets)
            n_targets = min(batch.targets.shape[1], passes * len(queries))
            index = torch.argsort(held.int(), dim=1, descending=True, stable=True)[:, :n_targets]
            held, in_row = held.gather(1, index), batch.target_positions.gather(1, index)
            slots = in_row // length * len(queries) + slot_of[in_row % length]
            positions = slots.where(held, 0)
            targets = batch.targets.gather(1, index).where(held, IGNORE)
        part = replace(
            batch,
            tokens=batch.tokens[:, queries],
            positions=batch.positions[:, queries],
            token_types=None if batch.token_types is None else batch.token_types[:, queries],
            targets=targets,
            target_positions=positions,
            weights=None if batch.weights is None else batch.weights.gather(1, index),
            counts=None,
        )
        return part, index

    def _hidden(self, model_with_loss: ModelWithLoss, part: Batch) -> Tensor:
        """Return the last hidden states (P B, t, d_model) of a slice."""
        model: Any = model_with_loss.model  # a Transformer: the settings refuse all others
        hidden: Tensor = model(
            part.tokens,
            part.positions,
            kv_cache=GatheredRow(self.group, self.size),
            masks=self.masks(model, part, model_with_loss.use_block_masks and part.tokens.is_cuda),
            token_types=part.token_types,
        )
        return hidden

    def masks(self, model: Any, part: Batch, in_blocks: bool) -> dict[int | None, AttentionMask]:
        """Return one mask for every window of the model: the positions of a slice (t,) against those of whole rows.

        With `in_blocks` they are block masks where the two chunks of a slice are whole blocks.
        """
        causal = model.causal if part.is_causal is None else part.is_causal
        length, documents = part.tokens.shape[1] * self.size, part.documents
        queries = self.positions(length, part.tokens.device)
        if not in_blocks or len(queries) % (2 * BLOCK):
            return {w: build_slice_mask(causal, w, documents, queries, length) for w in set(model.windows)}
        if documents is None:
            documents = torch.zeros(len(part.tokens), length, dtype=torch.int32, device=queries.device)
        return {
            w: AttentionMask(causal is True, blocks=build_slice_block_mask(causal, w, documents, queries))
            for w in set(model.windows)
        }
