"""The base of all objectives: from hidden states to the loss at the targets."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pretrain.kernels.half_copies import HalfCopies
from pretrain.models.interface import LanguageModule, features_of, hidden_states, through_head
from pretrain.objectives.batch import Batch, TokenRows
from pretrain.objectives.loss import Head, LossSettings, cross_entropy_sum, token_losses


class Objective(nn.Module):
    """Chooses targets and computes their loss; a subclass chooses by `collate`."""

    causal: bool
    is_bound = False  # whether the mean loss is an upper bound of the text's -log p per token
    validation_draws = 1  # how often a validation reads each row, under other masks
    compiled = False  # on a GPU, compute the loss by compiled kernels
    z_loss = 0.0  # weight of (log Z)^2 in the gradient
    static_shapes = False  # whether places without a target reach the head, as always on a GPU
    predicts_numbers = False  # whether a target is a number instead of an id
    mask_version: int | None = None  # how tokens to hide are drawn; none: nothing is drawn

    @property
    def parts(self) -> "dict[str, Objective]":
        """The objectives that are scored separately, by name; itself alone unless it blends several."""
        return {"": self}

    @property
    def validation_parts(self) -> "dict[str, Objective]":
        """The parts as validation scores them, by name: with another share of masked tokens where the settings say."""
        return self.parts

    def targets_per_sequence(self, length: int) -> int:
        """Return the number of positions of a packed sequence that reach the head, M of `Batch.targets` (B, M)."""
        return length

    def collate(self, rows: TokenRows, sample_indices: Tensor) -> Batch:
        """Return the micro-batch of packed rows; `sample_indices` (B,) are their indices in the stream of rows."""
        raise NotImplementedError

    def forward(self, hidden: Tensor, head: Head, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy in nats, float32 (), and the number of targets, int64 ().

        Where a batch has weights and counts, they are the weighted sum and the sum of the counts.
        """
        count = batch.row_counts().sum()
        if batch.weights is not None and batch.target_positions is not None and not self._needs_static(hidden):
            batch = batch.without_empty_places()  # about half of the places of a diffusion have no target
        features, targets = self._at_targets(hidden, head, batch)
        weights = None if batch.weights is None else batch.weights.flatten()
        settings = LossSettings(self.compiled, self.z_loss)
        return cross_entropy_sum(features, head, targets, weights, settings), count

    def _needs_static(self, hidden: Tensor) -> bool:
        return self.static_shapes or hidden.device.type != "cpu"

    def evaluate(self, hidden: Tensor, head: Head, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return each target's cross-entropy (B, M) in nats, unweighted, and the prediction (argmax), int64 (B, M).

        An objective that `predicts_numbers` returns squared errors and the predicted numbers, both float32.
        """
        features, targets = self._at_targets(hidden, head, batch)
        losses, predictions = token_losses(features, head, targets)
        return losses.view_as(batch.targets), predictions.view_as(batch.targets)

    def _at_targets(self, hidden: Tensor, head: Head, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.target_positions is not None:
            hidden = hidden.reshape(len(batch.targets), -1, hidden.shape[-1])  # the passes of a row side by side
            target_positions = batch.target_positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
            hidden = hidden.gather(1, target_positions)
        return features_of(head, hidden.flatten(0, 1)), batch.targets.flatten()


class SplitRows(Protocol):
    """Computes a batch of which this process has only some positions of each row."""

    def loss(self, model_with_loss: "ModelWithLoss", batch: Batch) -> tuple[Tensor, Tensor]:
        """Return this process's part of `ModelWithLoss.forward`; the sums over all processes are those of the batch."""
        ...

    def evaluate(self, model_with_loss: "ModelWithLoss", batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what `ModelWithLoss.evaluate` does, of whole rows."""
        ...


class ModelWithLoss(nn.Module):
    """A model with its objective, from batch to loss: the unit that is compiled, sharded and trained."""

    def __init__(self, model: LanguageModule, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.use_block_masks = False  # on a GPU, for compiled layers
        self.split_rows: SplitRows | None = None  # with context parallelism
        self.half_copies: HalfCopies | None = None  # with parallel.half_weight_copies

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy of the batch in nats, float32 (), and its number of targets, int64 ()."""
        if self.split_rows is not None:
            return self.split_rows.loss(self, batch)
        hidden = self._hidden(batch)
        loss: tuple[Tensor, Tensor] = through_head(self.model.head, self.objective, hidden, batch)
        return loss

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return each target's cross-entropy (B, M) in nats and the prediction (argmax), int64 (B, M)."""
        if self.split_rows is not None:
            return self.split_rows.evaluate(self, batch)
        hidden = self._hidden(batch)
        return through_head(self.model.head, self.objective.evaluate, hidden, batch)

    def _hidden(self, batch: Batch) -> Tensor:
        """Return the model's last hidden states (B, T, d_model)."""
        if not (self.use_block_masks and batch.tokens.is_cuda):
            return hidden_states(
                self.model, batch.tokens, batch.positions, batch.documents, batch.is_causal, batch.token_types
            )
        model: Any = self.model  # a Transformer: only these use block masks
        masks = model.masks(batch.tokens, batch.documents, batch.is_causal, in_blocks=True)
        hidden: Tensor = model(batch.tokens, batch.positions, masks=masks, token_types=batch.token_types)
        return hidden
