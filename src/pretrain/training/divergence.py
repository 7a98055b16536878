"""Loss spikes: detect the step, find its outlier sequences, rewind or stop."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.errors import DivergenceError
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.config import ParallelDims
from pretrain.program import command
from pretrain.training.config import DivergenceConfig, OnSpike
from pretrain.training.datamodule import TextDataModule

_MIN_DEVIATION = 0.01  # of the mean: the losses of a memorized text hardly differ
LOWER_RATE = "a lower optimizer.learning_rate and 'allow_change=[optimizer.learning_rate]'"  # in advice to resume
_MAX_NAMED = 20  # rows in a message
_MAD_TO_DEVIATION = 1.4826  # standard deviation of normal values / their median absolute deviation


class Rewind(Exception):  # noqa: N818  (not an error: the run continues)
    """Sends the run back to its last checkpoint, without the rows `excluded` (all of them so far)."""

    def __init__(self, message: str, step: int, excluded: frozenset[str], seconds: float) -> None:
        super().__init__(message)
        self.step = step  # of the spike
        self.excluded = excluded
        self.seconds = seconds  # training time so far, which a rewind does not undo


class Spikes:
    """Detects a step whose loss is far above those of the last steps, by their mean and standard deviation.

    OLMo-core's SkipStepOptimizer also takes 6 deviations of the last 128 steps
    (https://olmo-core.readthedocs.io/en/latest/optim.html).
    """

    def __init__(self, config: DivergenceConfig) -> None:
        self.on_spike = config.on_spike
        self.deviations = config.deviations
        self.losses: deque[float] = deque(maxlen=config.window)  # of the last steps without a spike

    def state_dict(self) -> dict[str, Any]:
        """Return the losses of the window, in nats per target."""
        return {"losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the losses of the window; the newest ones if this window is smaller."""
        self.losses = deque(state.get("losses", []), maxlen=self.losses.maxlen)

    @property
    def is_on(self) -> bool:
        """Whether spikes are looked for at all."""
        return self.on_spike is not OnSpike.ignore

    def limit(self) -> float:
        """Return the loss in nats above which a step is a spike; inf until half of the window is known."""
        if len(self.losses) < max(2, (self.losses.maxlen or 0) // 2):
            return math.inf
        mean = statistics.fmean(self.losses)
        return mean + self.deviations * max(statistics.pstdev(self.losses, mean), _MIN_DEVIATION * abs(mean))

    def is_spike(self, loss: float) -> bool:
        """Return whether a loss in nats per target is a spike; if not, add it to the window."""
        if not self.is_on or not math.isfinite(loss):
            return False
        if loss > self.limit():
            return True
        self.losses.append(loss)
        return False

    def describe(self, step: int, loss: float) -> str:
        """Return a phrase with the loss of a spike, the limit and how it was computed."""
        return (
            f"the loss of step {step} is {loss:.4f}, above {self.limit():.4f}: the mean of the {len(self.losses)} "
            f"steps before, {statistics.fmean(self.losses):.4f}, and {self.deviations:g} deviations"
        )


def outlier_sequences(
    model_with_loss: ModelWithLoss,
    data: TextDataModule,
    samples: np.ndarray,
    deviations: float,
    parallel_dims: ParallelDims,
) -> list[str]:
    """Return the ids of a step's rows whose loss is far above the others, or of all rows if there are none.

    `samples` are the sample indices that this process read. A collective call.
    """
    ids = [row.id for row in data.train_stream.row_origins(samples)]
    losses = _row_losses(model_with_loss, data, samples)
    if parallel_dims.ranks > 1:
        gathered: list[tuple[list[str], list[float]]] = [([], [])] * parallel_dims.ranks
        torch.distributed.all_gather_object(gathered, (ids, losses.tolist()))
        gathered = gathered[:: parallel_dims.same_rows]
        ids = [name for names, _ in gathered for name in names]
        losses = torch.tensor([loss for _, values in gathered for loss in values], dtype=torch.float64)
    scored = ~losses.isnan()  # an excluded row has no targets
    if not bool(scored.any()):
        return sorted(set(ids))
    median = losses[scored].median()
    deviation = _MAD_TO_DEVIATION * (losses[scored] - median).abs().median()
    is_outlier = losses > median + deviations * deviation.clamp(min=_MIN_DEVIATION * float(median))
    chosen = is_outlier if bool(is_outlier.any()) else scored
    return sorted({name for name, is_chosen in zip(ids, chosen.tolist(), strict=True) if is_chosen})


def _row_losses(model_with_loss: ModelWithLoss, data: TextDataModule, samples: np.ndarray) -> Tensor:
    """Return the mean loss of each row in nats per target, float64 (samples,); NaN for a row without targets."""
    training = model_with_loss.training
    model_with_loss.eval()
    row_losses = []
    for start in range(0, len(samples), data.size):
        batch = data.training_batch(samples[start : start + data.size])
        losses, _ = model_with_loss.evaluate(batch)
        row_losses.append(batch.weighted(losses).cpu().double().sum(1) / batch.row_counts().cpu())
    model_with_loss.train(training)
    return torch.cat(row_losses)


def named(rows: Iterable[str]) -> str:
    """Return row ids as text: the first few in order, and the number of the others."""
    rows = sorted(rows, key=_source_and_number)
    return ", ".join(rows[:_MAX_NAMED]) + (f" and {len(rows) - _MAX_NAMED:,} more" if len(rows) > _MAX_NAMED else "")


def _source_and_number(row: str) -> tuple[str, int]:
    """Return the stage and source that an id of a row begins with, and its number there: <stage>/<source>:<row>."""
    number = row.rpartition("/")[2].rpartition(":")[2]
    return row.removesuffix(number), int(number)


def spike_error(description: str, rows: Iterable[str], on_spike: OnSpike) -> DivergenceError:
    """Return the error that ends a run at a spike: as asked, or where all outlier sequences are excluded already."""
    excluded = on_spike is OnSpike.rewind
    return DivergenceError(
        f"{description}. The step read rows {named(rows)}{', which are excluded already' * excluded}. Look at them: "
        f"{command('inspect')} run=<run folder> step=...; then continue by resume=auto with "
        f"{'' if excluded else 'divergence.on_spike=rewind, or with '}{LOWER_RATE}."
    )
