"""Score a learner on packed rows."""

import numpy as np
import torch

from pretrain.data.train_stream import RowStream
from pretrain.evaluation.totals import Totals
from pretrain.objectives.batch import IGNORE
from pretrain.objectives.objective import ModelWithLoss


def score_rows(
    model_with_loss: ModelWithLoss,
    stream: RowStream,
    n_rows: int,
    batch_size: int,
    bits_per_byte_of_a_nat: float | None,
) -> Totals:
    """Return what the first `n_rows` rows of a stream come to; the factor is none for a masked model."""
    loss_sum, right, count = 0.0, 0, 0
    device = next(model_with_loss.parameters()).device
    for start in range(0, n_rows, batch_size):
        places = np.arange(start, min(start + batch_size, n_rows))
        batch = model_with_loss.objective.collate(stream.rows(places), torch.from_numpy(places))
        losses, predictions = model_with_loss.evaluate(batch.to(device))
        loss_sum += float(losses.cpu().double().sum())
        right += int((predictions.cpu() == batch.targets).sum())
        count += int((batch.targets != IGNORE).sum())
    return Totals(loss_sum, right, count, bits_per_byte_of_a_nat)
