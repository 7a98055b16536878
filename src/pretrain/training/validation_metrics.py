"""Loss, accuracy, F1 and correlations of a validation, over batches and processes."""

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassF1Score
from torchmetrics.utilities import dim_zero_cat

from pretrain.data.collate import IGNORE
from pretrain.evaluation.agreement import pearson, spearman
from pretrain.evaluation.totals import Totals, target_counts, validation_metrics
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import Objective


class LossMetrics(Metric):
    """Loss and correct predictions, summed over all targets of all ranks; the mean over `draws` updates of each row."""

    full_state_update = False
    loss_sum: Tensor
    correct: Tensor
    count: Tensor
    variance: Tensor

    def __init__(self, dtype: torch.dtype = torch.float64, draws: int = 1) -> None:
        super().__init__()
        self.draws = draws
        self._of_rows: list[Tensor] = []  # losses (B,) of the same rows under other masks
        for name in ("loss_sum", "correct", "count", "variance"):
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def update(self, losses: Tensor, correct: Tensor, counts: Tensor) -> None:
        """Add targets (B, M): cross-entropies in nats, whether the prediction was correct, and how many they are, (B,).

        With draws that many updates in turn are of the same rows.
        """
        losses = losses.to(self.loss_sum.dtype)
        self.loss_sum += losses.sum()
        self.correct += correct.sum()
        self.count += counts.sum()
        if self.draws > 1:
            self._of_rows.append(losses.sum(1))
            if len(self._of_rows) == self.draws:
                self.variance += torch.stack(self._of_rows).var(0).sum()
                self._of_rows.clear()

    def reset(self) -> None:
        """Forget all updates."""
        super().reset()
        self._of_rows.clear()

    def totals(self, same_rows: int, bits_per_byte_of_a_nat: float | None, is_bound: bool) -> Totals:
        """Return the totals over all rows; `same_rows` ranks have each added the same ones.

        The variance is that of the summed loss over masks, within rows: rather too large than too small, as shares of
        hidden tokens are of low discrepancy within a row and over rows.
        """
        loss_sum, correct, count, variance = self.compute()
        times = self.draws * same_rows
        return Totals(
            loss_sum / times, correct / times, count / times, bits_per_byte_of_a_nat, is_bound, variance / times
        )

    def compute(self) -> tuple[float, float, float, float]:
        """Return the summed loss in nats, correct predictions, targets and variances, of all updates of all ranks."""
        return float(self.loss_sum), float(self.correct), float(self.count), float(self.variance)


class Correlations(Metric):
    """Correlations of predicted with true numbers, over all targets of all ranks."""

    full_state_update = False
    predicted: list[Tensor]
    truth: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("predicted", "truth"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Add numbers, float32 (N,) each."""
        self.predicted.append(predicted)
        self.truth.append(truth)

    def compute(self) -> dict[str, float]:
        """Return Pearson's and Spearman's correlation; nothing without a number."""
        numbers = [cast(Tensor, dim_zero_cat(each)) for each in (self.predicted, self.truth) if len(each)]
        predicted, truth = (each.cpu().numpy() for each in numbers) if numbers else (np.zeros(0), np.zeros(0))
        return {"pearson": pearson(predicted, truth), "spearman": spearman(predicted, truth)} if len(truth) else {}


class ValidationScores(nn.Module):
    """Metrics of each validation source and each part of the objective."""

    def __init__(
        self, objective: Objective, bits_per_byte_of_a_nat: dict[str, float | None], n_labels: int | None,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        super().__init__()
        self._loaders = [  # (source, part of the objective, bits per byte of a nat, whether it is a bound), by number
            (source, name, factor if part.causal or part.is_bound else None, part.is_bound)
            for source, factor in bits_per_byte_of_a_nat.items()
            for name, part in objective.validation_parts.items()
        ]
        draws = [part.validation_draws for part in objective.validation_parts.values()]
        self.losses = nn.ModuleList(LossMetrics(dtype, number) for _ in bits_per_byte_of_a_nat for number in draws)
        self.f1 = None if n_labels is None or objective.predicts_numbers else macro_f1(n_labels)
        self.correlations = Correlations() if objective.predicts_numbers else None

    def update(self, loader: int, batch: Batch, losses: Tensor, predictions: Tensor) -> None:
        """Add a batch of a loader: losses (B, T) in nats and predictions (B, T), or squared errors and numbers."""
        metrics = self.losses[loader]
        assert isinstance(metrics, LossMetrics)
        correct = (predictions == batch.targets).to(losses.dtype)
        metrics.update(batch.weighted(losses), batch.weighted(correct), batch.row_counts())
        if self.f1 is not None:
            self.f1.update(predictions, batch.targets)
        if self.correlations is not None:
            assert batch.numbers is not None
            is_target = batch.targets != IGNORE
            self.correlations.update(predictions[is_target], batch.numbers[is_target])

    def compute(self, same_rows: int = 1) -> tuple[dict[str, float], dict[str, int]]:
        """Return values by metric name and targets by source, over all ranks, and reset the metrics.

        `same_rows` ranks have each added the same rows.
        """
        totals: list[tuple[str, str, Totals]] = []
        for (source, part, factor, is_bound), metrics in zip(self._loaders, self.losses, strict=True):
            assert isinstance(metrics, LossMetrics)
            totals.append((source, part, metrics.totals(same_rows, factor, is_bound)))
            metrics.reset()
        values = validation_metrics(totals)
        if self.f1 is not None:
            values.pop("perplexity", None)  # of labels: the loss holds the same information
            values |= {"f1": float(self.f1.compute())} if values else {}
            self.f1.reset()
        if self.correlations is not None:  # the loss is a squared error
            values = {"loss": values["loss"]} | self.correlations.compute() if values else {}
            self.correlations.reset()
        return {f"val/{name}": value for name, value in values.items()}, target_counts(totals)


def macro_f1(n_labels: int) -> MulticlassF1Score:
    """Return macro F1 over all ranks: the mean over labels of the harmonic mean of precision and recall.

    A label that is neither a target nor a prediction does not count.
    """
    return MulticlassF1Score(num_classes=n_labels, average="macro", ignore_index=IGNORE)
