"""What validation adds up, over batches and processes."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassF1Score

from pretrain.objectives.batch import IGNORE


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


def macro_f1(n_labels: int) -> MulticlassF1Score:
    """Return the metric of labels: the mean over them of the harmonic mean of precision and recall, all ranks together.

    A label that neither occurs nor is answered does not count.
    """
    return MulticlassF1Score(num_classes=n_labels, average="macro", ignore_index=IGNORE)
