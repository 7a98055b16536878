"""What steps have come to: decided on the device, read one step late, so that no step waits for its own result."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pretrain.training.host_copies import HostCopies

NO_TARGET = "the step's rows had no target token"
NOT_FINITE = "the gradient was not finite"
OVERFLOW = "the gradient overflowed fp16"
SPIKE = "the loss jumped"


@dataclass(frozen=True)
class StepOutcome:
    """One optimizer step."""

    step: int  # from 1
    skipped_because: str  # empty: it has changed the weights
    loss: float  # nats per target over all processes; NaN without targets
    samples: Tensor  # int64: sample indices that it read, on the CPU; of all processes if there is a ledger


@dataclass(frozen=True)
class _Posted:
    step: int
    skipped_because: str
    numbers: Tensor  # (3,): whether it was applied, targets, summed loss
    samples: Tensor


class StepOutcomes:
    """The outcome of each step, handed to `listeners` in the order of the steps.

    `post` hands over that of the step before, whose numbers have long arrived: a GPU still has the work of the posted
    step before it. `settle` hands over the newest too, and waits for it.
    """

    def __init__(self) -> None:
        self.listeners: list[Callable[[StepOutcome], None]] = []
        self._copies = HostCopies(), HostCopies()  # of even and of odd steps
        self._posted: _Posted | None = None

    def post(self, step: int, skipped_because: str, numbers: Tensor, samples: Tensor) -> None:
        """Note the outcome of a step; `skipped_because` is a reason that is known already.

        `numbers` (3,) on the device: whether the step was applied, its targets and its summed loss.
        """
        posted = _Posted(step, skipped_because, self._copies[step % 2].copy("numbers", numbers), samples)
        before, self._posted = self._posted, posted
        self._hand_over(before)

    def settle(self) -> None:
        """Hand over the outcome of the newest step, if that has not happened."""
        posted, self._posted = self._posted, None
        self._hand_over(posted)

    def _hand_over(self, posted: _Posted | None) -> None:
        if posted is None:
            return
        self._copies[posted.step % 2].wait()
        applied, targets, loss_sum = posted.numbers.tolist()
        because = posted.skipped_because
        if not because and not applied:
            because = NOT_FINITE if targets else NO_TARGET
        loss = loss_sum / targets if targets else math.nan
        outcome = StepOutcome(posted.step, because, loss, posted.samples)
        for listener in self.listeners:
            listener(outcome)
