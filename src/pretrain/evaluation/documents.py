"""Score a learner on packed rows."""

import math
from typing import Any

import numpy as np
import torch

from pretrain.data.batches import RowStream
from pretrain.objectives.batch import IGNORE
from pretrain.objectives.objective import Learner


def score_rows(learner: Learner, stream: RowStream, batch_size: int, max_rows: int = 0) -> dict[str, Any]:
    """Return rows, targets, loss in nats per target, perplexity and the share of targets that were the likeliest token.

    `max_rows` 0 scores all rows of the stream.
    """
    n_rows = min(max_rows or len(stream), len(stream))
    loss_sum, right, count = 0.0, 0, 0
    for start in range(0, n_rows, batch_size):
        places = np.arange(start, min(start + batch_size, n_rows))
        batch = learner.objective.make_batch(stream.rows(places), torch.from_numpy(places))
        losses, hits = learner.evaluate(batch)
        loss_sum += float(losses.double().sum())
        right += int(hits.sum())
        count += int((batch.targets != IGNORE).sum())
    loss = loss_sum / max(1, count)
    return {
        "rows": n_rows,
        "targets": count,
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": right / max(1, count),
    }
