"""Texts that belong together get like vectors: InfoNCE over the texts of a batch."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pretrain.data.collate import IGNORE
from pretrain.models.pooling import pool
from pretrain.objectives.batch import Batch, TokenRows
from pretrain.objectives.fine_tuning_config import Pooling
from pretrain.objectives.loss import Head
from pretrain.objectives.objective import Objective

_ABSENT = -1  # in `Batch.target_positions`: a row has no such text


class Contrastive(Objective):
    """Every anchor's target is its positive, among the positives and hard negatives of all anchors of the micro-batch.

    The loss is the cross-entropy of cosine similarities divided by a temperature, the mean over the vectors' lengths
    `dimensions`; in training the candidates are those of the micro-batches of all processes. A batch has M texts a row:
    `targets` (B, M) is the number of an anchor's positive in its row, and `target_positions` (B, M) the number of the
    anchor that a text belongs to. Sources: van den Oord et al. 2018, https://arxiv.org/abs/1807.03748 (the loss);
    Kusupati et al. 2022, https://arxiv.org/abs/2205.13147 (several lengths).
    """

    def __init__(
        self, causal: bool, pooling: Pooling, temperature: float, dimensions: Sequence[int], ends: tuple[int, int]
    ) -> None:
        """`ends` are the ids of BOS and EOS, `dimensions` the shorter lengths of vectors to train beside the full."""
        super().__init__()
        self.causal = causal
        self.pooling = pooling
        self.temperature = temperature
        self.dimensions = tuple(dimensions)
        self.bos_id, self.eos_id = ends

    def targets_per_sequence(self, length: int) -> int:
        """Return 1, the minimum: the number of pairs in a sequence depends on the texts."""
        return 1

    def collate(self, rows: TokenRows, sample_indices: Tensor) -> Batch:
        """Return rows in which every text of a pair is a document of its own, with positions from 0."""
        follows = np.zeros(rows.tokens.shape, np.bool_)  # where a text of the same pair as the one before begins
        follows[:, 1:] = (rows.tokens[:, :-1] == self.eos_id) & (rows.tokens[:, 1:] == self.bos_id)
        within = rows.documents >= 0
        changes = np.diff(rows.documents, axis=1, prepend=-1) != 0
        begins = (follows | changes) & within
        texts = np.where(within, begins.cumsum(1) - 1, -1).astype(np.int32)
        columns = np.broadcast_to(np.arange(texts.shape[1]), texts.shape)
        positions = np.where(within, columns - np.maximum.accumulate(np.where(begins, columns, 0), axis=1), 0)
        shape = (len(texts), max(1, int(texts.max()) + 1))
        targets, anchors = np.full(shape, IGNORE, np.int64), np.full(shape, _ABSENT, np.int64)
        row, column = np.nonzero(begins)
        number, is_anchor = texts[row, column], changes[row, column]
        anchor = np.maximum.accumulate(np.where(is_anchor, np.arange(len(row)), 0)) if len(row) else row
        anchors[row, number] = number[anchor]
        positive = np.flatnonzero(np.diff(anchor, append=-1) == 0)  # texts that the next one of their pair follows
        positive = positive[is_anchor[positive]]
        targets[row[positive], number[positive]] = number[positive] + 1
        return Batch(
            tokens=torch.from_numpy(rows.tokens),
            positions=torch.from_numpy(positions),
            documents=torch.from_numpy(texts),
            targets=torch.from_numpy(targets),
            target_positions=torch.from_numpy(anchors),
            sample_indices=sample_indices,
        )

    def forward(self, hidden: Tensor, head: Head, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed loss of this process's anchors in nats, float32 (), and their number, int64 ().

        A collective call: candidates are those of all processes, and gradients flow to each of them.
        """
        anchors, candidates, labels = self._pairs(hidden, batch)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            counts = [torch.zeros_like(labels.new_zeros(1)) for _ in range(dist.get_world_size())]
            dist.all_gather(counts, labels.new_full((1,), len(candidates)))
            sizes = [int(count) for count in counts]
            candidates = _Gather.apply(candidates, sizes)
            labels = labels + sum(sizes[: dist.get_rank()])
        loss = sum(
            (F.cross_entropy(logits, labels, reduction="sum") for logits in self._logits(anchors, candidates)),
            anchors.new_zeros(()),
        )
        return loss / (1 + len(self.dimensions)), batch.row_counts().sum()

    def evaluate(self, hidden: Tensor, head: Head, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return each anchor's loss among the candidates of this batch, float32 (B, M), and its nearest, int64 (B, M).

        The nearest is given as the target where it is the positive, else as -1.
        """
        anchors, candidates, labels = self._pairs(hidden, batch)
        every = self._logits(anchors, candidates)
        losses = [F.cross_entropy(logits, labels, reduction="none") for logits in every]
        at = batch.targets != IGNORE
        found = torch.zeros_like(batch.targets, dtype=torch.float32)
        found[at] = torch.stack(losses).mean(0)
        nearest = torch.full_like(batch.targets, -1)
        correct = every[-1].argmax(-1) == labels if len(labels) else labels.bool()
        nearest[at] = batch.targets[at].where(correct, -1)
        return found, nearest

    def _logits(self, anchors: Tensor, candidates: Tensor) -> list[Tensor]:
        """Return the similarities over the temperature, (anchors, candidates), of each length; the full one last."""
        with torch.autocast(anchors.device.type, enabled=False):
            return [
                F.normalize(anchors[:, :size], dim=-1) @ F.normalize(candidates[:, :size], dim=-1).T / self.temperature
                for size in (*self.dimensions, anchors.shape[1])
            ]

    def _pairs(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the vectors of anchors with a target, of all their candidates, and each anchor's right candidate."""
        assert batch.documents is not None
        assert batch.target_positions is not None
        with torch.autocast(hidden.device.type, enabled=False):
            vectors = pool(hidden, batch.documents, batch.targets.shape[1], self.pooling.value)
        anchor_of, is_anchor = batch.target_positions, batch.targets != IGNORE
        number = torch.arange(batch.targets.shape[1], device=hidden.device)
        is_candidate = is_anchor.gather(1, anchor_of.clamp(min=0)) & (anchor_of >= 0) & (anchor_of != number)
        order = (is_candidate.flatten().cumsum(0) - 1).view_as(is_candidate)
        labels = order.gather(1, batch.targets.clamp(min=0))[is_anchor]
        return vectors[is_anchor], vectors[is_candidate], labels


class _Gather(torch.autograd.Function):
    """The vectors of all processes, one after the other; a process's gradient is the sum of all processes' for it."""

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, own: Tensor, sizes: list[int]) -> Tensor:
        context.sizes = sizes  # type: ignore[attr-defined]
        padded = F.pad(own, (0, 0, 0, max(sizes) - len(own))).contiguous()
        gathered = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(gathered, padded)
        return torch.cat([vectors[:size] for vectors, size in zip(gathered, sizes, strict=True)])

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        sizes: list[int] = context.sizes  # type: ignore[attr-defined]
        return total.split(sizes)[dist.get_rank()], None
