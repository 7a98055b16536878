"""Predict the label of a text."""

import numpy as np
import torch
from torch import Tensor

from pretrain.data.collate import IGNORE
from pretrain.models.interface import features_of
from pretrain.objectives.batch import Batch, TokenRows
from pretrain.objectives.fine_tuning_config import Pooling
from pretrain.objectives.loss import Head
from pretrain.objectives.objective import Objective


class Classify(Objective):
    """One target for each document of a row: its label, predicted from the document's pooled hidden states.

    Documents that share a row do not attend to each other, so the prediction is that of the document alone. Targets are
    (B, M) with M the most documents in a row of this batch. Source: Radford et al. 2018, section 3.2 (last position,
    causal); Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.2 (first position).
    """

    def __init__(self, causal: bool, pooling: Pooling) -> None:
        super().__init__()
        self.causal = causal
        self.pooling = pooling

    def targets_per_sequence(self, length: int) -> int:
        """Return 1, the minimum: the number of documents in a sequence depends on the texts."""
        return 1

    def collate(self, rows: TokenRows, sample_indices: Tensor) -> Batch:
        """Return rows whose targets are their documents' labels; `target_positions` are the pooled positions.

        With pooling=mean, which pools all positions of a document, they are the first ones.
        """
        assert rows.labels is not None, "only rows of labeled texts can be classified"
        numbers = rows.documents
        most_documents = max(1, int(numbers.max()) + 1)
        before = np.pad(numbers, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
        after = np.pad(numbers, ((0, 0), (0, 1)), constant_values=-1)[:, 1:]
        at_end = self.pooling is Pooling.last
        row, position = np.nonzero((numbers >= 0) & (numbers != (after if at_end else before)))
        target_positions = np.zeros((len(numbers), most_documents), np.int64)
        targets = np.full((len(numbers), most_documents), IGNORE, np.int64)
        target_positions[row, numbers[row, position]] = position
        targets[row, numbers[row, position]] = rows.labels[row, position]
        return Batch(
            tokens=torch.from_numpy(rows.tokens),
            positions=torch.from_numpy(rows.positions),
            documents=torch.from_numpy(rows.documents),
            targets=torch.from_numpy(targets),
            target_positions=torch.from_numpy(target_positions),
            sample_indices=sample_indices,
        )

    def log_probabilities(self, hidden: Tensor, head: Head, batch: Batch) -> Tensor:
        """Return the log-probability of each label for each document, float32 (B, M, V)."""
        features, _ = self._at_targets(hidden, head, batch)
        logits = torch.nn.functional.linear(features, head.weight, head.bias).float()
        return logits.log_softmax(-1).unflatten(0, batch.targets.shape)

    def _at_targets(self, hidden: Tensor, head: Head, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.pooling is not Pooling.mean:
            return super()._at_targets(hidden, head, batch)
        assert batch.documents is not None
        numbers = torch.arange(batch.targets.shape[1], device=hidden.device)
        within = batch.documents.unsqueeze(1) == numbers[:, None]  # (B, M, T)
        total = (within.to(hidden.dtype) @ hidden).float()
        mean = total / within.sum(-1, keepdim=True).clamp(min=1)  # an integer count: bf16 is exact to 256 only
        return features_of(head, mean.to(hidden.dtype).flatten(0, 1)), batch.targets.flatten()
