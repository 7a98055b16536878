"""Losses, accuracies and F1 of a validation, summed over batches and processes."""

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassF1Score

from pretrain.data.collate import IGNORE
from pretrain.evaluation.totals import Totals, target_counts, validation_metrics
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import Objective


class LossMetrics(Metric):
    """Loss and right answers summed over all targets of all ranks, each target counting once."""

    full_state_update = False
    loss_sum: Tensor
    correct: Tensor
    count: Tensor

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        for name in ("loss_sum", "correct", "count"):
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def update(self, losses: Tensor, correct: Tensor, counts: Tensor) -> None:
        """Add targets: cross-entropies in nats, whether each was the likeliest token, and whether it counts."""
        self.loss_sum += losses.to(self.loss_sum.dtype).sum()
        self.correct += correct.sum()
        self.count += counts.sum()

    def compute(self) -> tuple[float, float, float]:
        """Return the summed loss in nats, the targets that were the likeliest token, and all targets."""
        return float(self.loss_sum), float(self.correct), float(self.count)


class ValidationScores(nn.Module):
    """The metrics of every validation source and every part of the objective."""

    def __init__(
        self, objective: Objective, bits_per_byte_of_a_nat: dict[str, float | None], n_labels: int | None,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        super().__init__()
        self._scored = [  # (source, part of the objective, factor), in the order of the loaders
            (source, name, factor if part.causal else None)
            for source, factor in bits_per_byte_of_a_nat.items()
            for name, part in objective.parts.items()
        ]
        self.losses = nn.ModuleList(LossMetrics(dtype) for _ in self._scored)
        self.f1 = None if n_labels is None else macro_f1(n_labels)

    def update(self, loader: int, batch: Batch, losses: Tensor, predictions: Tensor) -> None:
        """Add a batch of a loader: losses (B, T) in nats and predictions (B, T)."""
        metrics = self.losses[loader]
        assert isinstance(metrics, LossMetrics)
        metrics.update(losses, predictions == batch.targets, batch.targets != IGNORE)
        if self.f1 is not None:
            self.f1.update(predictions, batch.targets)

    def compute(self) -> tuple[dict[str, float], dict[str, int]]:
        """Return figures by metric key and targets by source, over all ranks, and reset the metrics."""
        totals: list[tuple[str, str, Totals]] = []
        for (source, part, factor), metrics in zip(self._scored, self.losses, strict=True):
            assert isinstance(metrics, LossMetrics)
            totals.append((source, part, Totals(*metrics.compute(), factor)))
            metrics.reset()
        figures = validation_metrics(totals)
        if self.f1 is not None:
            figures.pop("perplexity", None)  # of labels: the loss already tells the same
            figures |= {"f1": float(self.f1.compute())} if figures else {}
            self.f1.reset()
        return {f"val/{name}": value for name, value in figures.items()}, target_counts(totals)


def macro_f1(n_labels: int) -> MulticlassF1Score:
    """Return the metric of labels: the mean over them of the harmonic mean of precision and recall, all ranks together.

    A label that neither occurs nor is answered does not count.
    """
    return MulticlassF1Score(num_classes=n_labels, average="macro", ignore_index=IGNORE)
