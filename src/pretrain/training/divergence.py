"""Losses that jump: which step is one, which rows are to blame, and what is done about it."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.data.collate import IGNORE
from pretrain.errors import DivergenceError
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.config import ParallelDims
from pretrain.training.config import DivergenceConfig, OnSpike
from pretrain.training.datamodule import TextDataModule

_FLAT = 0.01  # of the mean: the least deviation, for the losses of a text known by heart hardly differ


_SHOWN = 20  # rows named in a message


_NORMAL = 1.4826  # of the median distance from the median: the standard deviation where values are normal


class Rewind(Exception):  # noqa: N818  (not an error: the run goes on)
    """The run is to go back to its last checkpoint and to leave out rows, `excluded` being all of them so far."""

    def __init__(self, message: str, step: int, excluded: frozenset[str], seconds: float) -> None:
        super().__init__(message)
        self.step = step  # that jumped
        self.excluded = excluded
        self.seconds = seconds  # of the run so far, which do not come back


class Spikes:
    """Tells a step whose loss is far above those of the steps before it.

    The measure is the mean of the last losses and their standard deviation. OLMo-core's SkipStepOptimizer, too, takes
    6 deviations of the last 128 steps (https://olmo-core.readthedocs.io/en/latest/optim.html).
    """

    def __init__(self, config: DivergenceConfig) -> None:
        self.on_spike = config.on_spike
        self.deviations = config.deviations
        self.losses: deque[float] = deque(maxlen=config.window)  # of the newest steps that were none

    def state_dict(self) -> dict[str, Any]:
        """Return the losses of the window, in nats per target."""
        return {"losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the window by that of `state`, of which as many of the newest losses stay as it holds."""
        self.losses = deque(state.get("losses", []), maxlen=self.losses.maxlen)

    @property
    def watches(self) -> bool:
        """Whether anything is to be done about a spike."""
        return self.on_spike is not OnSpike.ignore

    def limit(self) -> float:
        """Return the loss in nats from which on a step is a spike: none is, before half of the window is known."""
        if len(self.losses) < max(2, (self.losses.maxlen or 0) // 2):
            return math.inf
        mean = statistics.fmean(self.losses)
        return mean + self.deviations * max(statistics.pstdev(self.losses, mean), _FLAT * abs(mean))

    def is_spike(self, loss: float) -> bool:
        """Return whether a step of this loss, in nats per target, is a spike; else count it among the usual ones."""
        if not self.watches or not math.isfinite(loss):
            return False
        if loss > self.limit():
            return True
        self.losses.append(loss)
        return False

    def describe(self, step: int, loss: float) -> str:
        """Return what stood out."""
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
    rank: int,
) -> list[str]:
    """Return the ids of the rows of a step that are to blame for its loss: those far above the step's others.

    `samples` are the places of the rows that process `rank` read; all processes take part. Where no row stands out, all
    are to blame.
    """
    ids = [row.id for row in data.train_stream.row_origins(samples)]
    losses = _row_losses(model_with_loss, data, samples)
    if parallel_dims.ranks > 1:
        everyone: list[tuple[list[str], list[float]]] = [([], [])] * parallel_dims.ranks
        torch.distributed.all_gather_object(everyone, (ids, losses.tolist()))
        everyone = everyone[:: parallel_dims.tensor]
        ids = [name for names, _ in everyone for name in names]
        losses = torch.tensor([loss for _, own in everyone for loss in own], dtype=torch.float64)
    scored = ~losses.isnan()  # a row that was left out before has no targets
    if not bool(scored.any()):
        return sorted(set(ids))
    middle = losses[scored].median()
    spread = _NORMAL * (losses[scored] - middle).abs().median()
    far = losses > middle + deviations * spread.clamp(min=_FLAT * float(middle))
    chosen = far if bool(far.any()) else scored
    return sorted({name for name, blamed in zip(ids, chosen.tolist(), strict=True) if blamed})


def _row_losses(model_with_loss: ModelWithLoss, data: TextDataModule, samples: np.ndarray) -> Tensor:
    """Return the mean loss of each row in nats per target, float64 (samples,); NaN for one without targets."""
    training = model_with_loss.training
    model_with_loss.eval()
    device = next(model_with_loss.parameters()).device
    found = []
    for start in range(0, len(samples), data.size):
        batch = data.training_batch(samples[start : start + data.size]).to(device)
        losses, _ = model_with_loss.evaluate(batch)
        found.append(losses.cpu().double().sum(1) / (batch.targets != IGNORE).sum(1).cpu())
    model_with_loss.train(training)
    return torch.cat(found)


def named(rows: Iterable[str]) -> str:
    """Return row ids as text, the first few of them."""
    rows = sorted(rows, key=lambda row: (row.rpartition(":")[0], int(row.rpartition(":")[2])))
    return ", ".join(rows[:_SHOWN]) + (f" and {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else "")


def stop(what: str, rows: Iterable[str]) -> DivergenceError:
    """Return the error that ends a run at a spike."""
    return DivergenceError(
        f"{what}. It read rows {named(rows)}. Look at them: python src/prepare.py inspect run=<run folder> step=...; "
        "then go on by resume=auto with divergence.on_spike=rewind, or with a lower optimizer.learning_rate."
    )
