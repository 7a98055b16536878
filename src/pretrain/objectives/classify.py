"""Predict the label of a text, or a number."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data.collate import IGNORE, Ints
from pretrain.models.interface import features_of
from pretrain.objectives.batch import Batch, TokenRows
from pretrain.objectives.fine_tuning_config import Pooling
from pretrain.objectives.loss import Head
from pretrain.objectives.objective import Objective


class _Pooled(NamedTuple):
    """The position of each document of a batch that stands for it; all int64 (documents,)."""

    row: Ints
    number: Ints  # of the document in its row
    position: Ints


class Classify(Objective):
    """One target for each document of a row: its label, predicted from the document's pooled hidden states.

    Documents that share a row do not attend to each other, so the prediction is that of the document alone. Targets are
    (B, M) with M the most documents in a row of this batch. Source: Radford et al. 2018, section 3.2 (last position,
    causal); Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.2 (first position).
    """

    def __init__(self, causal: bool, pooling: Pooling, eos_id: int) -> None:
        """`eos_id` ends each text of a pair."""
        super().__init__()
        self.causal = causal
        self.pooling = pooling
        self.eos_id = eos_id

    def targets_per_sequence(self, length: int) -> int:
        """Return 1, the minimum: the number of documents in a sequence depends on the texts."""
        return 1

    def collate(self, rows: TokenRows, sample_indices: Tensor) -> Batch:
        """Return rows whose targets are their documents' labels; `target_positions` are the pooled positions.

        With pooling=mean, which pools all positions of a document, they are the first ones.
        """
        assert rows.labels is not None, "only rows of labeled texts can be classified"
        pooled = self._pooled(rows.documents)
        labels = torch.from_numpy(rows.labels[pooled.row, pooled.position])
        return self._batch(rows, sample_indices, pooled, labels)

    def log_probabilities(self, hidden: Tensor, head: Head, batch: Batch) -> Tensor:
        """Return the log-probability of each label for each document, float32 (B, M, V)."""
        features, _ = self._at_targets(hidden, head, batch)
        logits = F.linear(features, head.weight, head.bias).float()
        return logits.log_softmax(-1).unflatten(0, batch.targets.shape)

    def _pooled(self, documents: np.ndarray) -> _Pooled:
        before = np.pad(documents, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
        after = np.pad(documents, ((0, 0), (0, 1)), constant_values=-1)[:, 1:]
        at_end = self.pooling is Pooling.last
        row, position = np.nonzero((documents >= 0) & (documents != (after if at_end else before)))
        return _Pooled(row, documents[row, position].astype(np.int64), position)

    def _batch(self, rows: TokenRows, sample_indices: Tensor, pooled: _Pooled, targets: Tensor) -> Batch:
        """Return the batch; `targets` (documents,) are those of `pooled`."""
        shape = len(rows.documents), max(1, int(rows.documents.max()) + 1)
        target_positions, all_targets = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORE)
        target_positions[pooled.row, pooled.number] = torch.from_numpy(pooled.position)
        all_targets[pooled.row, pooled.number] = targets
        return Batch(
            tokens=torch.from_numpy(rows.tokens),
            positions=torch.from_numpy(rows.positions),
            documents=torch.from_numpy(rows.documents),
            targets=all_targets,
            target_positions=target_positions,
            sample_indices=sample_indices,
            token_types=token_types(rows.tokens, rows.documents, self.eos_id),
        )

    def _at_targets(self, hidden: Tensor, head: Head, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.pooling is not Pooling.mean:
            return super()._at_targets(hidden, head, batch)
        assert batch.documents is not None
        numbers = torch.arange(batch.targets.shape[1], device=hidden.device)
        within = batch.documents.unsqueeze(1) == numbers[:, None]  # (B, M, T)
        total = (within.to(hidden.dtype) @ hidden).float()
        mean = total / within.sum(-1, keepdim=True).clamp(min=1)  # an integer count: bf16 is exact to 256 only
        return features_of(head, mean.to(hidden.dtype).flatten(0, 1)), batch.targets.flatten()


class Regress(Classify):
    """One target for each document of a row: its number, predicted from the document's pooled hidden states.

    The loss is the squared error. `Batch.numbers` has the numbers; `Batch.targets` is 0 where there is one. Source: Cer
    et al. 2017, https://arxiv.org/abs/1708.00055 (the task of GLUE); Devlin et al. 2019 fine-tune on it in this way.
    """

    predicts_numbers = True

    def collate(self, rows: TokenRows, sample_indices: Tensor) -> Batch:
        """Return rows whose targets are their documents' numbers, at positions as those of `Classify`."""
        assert rows.numbers is not None, "only rows of texts with numbers can be regressed on"
        pooled = self._pooled(rows.documents)
        batch = self._batch(rows, sample_indices, pooled, torch.zeros(len(pooled.row), dtype=torch.int64))
        numbers = torch.zeros(batch.targets.shape)
        numbers[pooled.row, pooled.number] = torch.from_numpy(rows.numbers[pooled.row, pooled.position])
        return replace(batch, numbers=numbers)

    def forward(self, hidden: Tensor, head: Head, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed squared error, float32 (), and the number of targets, int64 ()."""
        return self._squared_errors(self.predictions(hidden, head, batch), batch).sum(), batch.row_counts().sum()

    def evaluate(self, hidden: Tensor, head: Head, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return each target's squared error and the predicted number, both float32 (B, M)."""
        predictions = self.predictions(hidden, head, batch)
        return self._squared_errors(predictions, batch), predictions

    def predictions(self, hidden: Tensor, head: Head, batch: Batch) -> Tensor:
        """Return the predicted number of each document, float32 (B, M)."""
        features, _ = self._at_targets(hidden, head, batch)
        bias = None if head.bias is None else head.bias.float()  # none of model.classifier_head=score
        with torch.autocast(hidden.device.type, enabled=False):  # numbers in bf16 would tie
            predicted = F.linear(features.float(), head.weight.float(), bias)
        return predicted.view(batch.targets.shape)

    def _squared_errors(self, predictions: Tensor, batch: Batch) -> Tensor:
        assert batch.numbers is not None
        return (predictions - batch.numbers).square().where(batch.targets != IGNORE, 0.0)


def token_types(tokens: np.ndarray, documents: np.ndarray, eos_id: int) -> Tensor | None:
    """Return 1 for each token after the first text of a pair, else 0, int64 (B, T); None if there is no pair.

    Texts end with `eos_id`, which belongs to the text that it ends. Source: Devlin et al. 2019,
    https://arxiv.org/abs/1810.04805, section 3 (segments A and B).
    """
    begins = np.diff(documents, axis=1, prepend=-1) != 0  # a document; or padding, which has no text
    ends = (tokens == eos_id) & ~begins  # a BOS may have the same id
    ends_before = ends.cumsum(1) - ends
    types = ends_before - np.maximum.accumulate(np.where(begins, ends_before, 0), axis=1) > 0
    types &= documents >= 0
    return torch.from_numpy(types.astype(np.int64)) if types.any() else None
