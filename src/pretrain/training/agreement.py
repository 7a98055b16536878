"""Agreement of a run's processes on stop signals and on the clock, through CPU memory: they wait for no device."""

from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from pretrain.stop_signals import STOP_SIGNALS


class Agreement:
    """The first stop signal that any process has received, and the clock of rank 0.

    `start` and `finish` are collective calls in the same order on every process. One process agrees with itself.
    """

    def __init__(self, rank: int, ranks: int, timeout: timedelta) -> None:
        self.rank, self.ranks = rank, ranks
        # gloo works on the CPU; a group of its own keeps its messages apart from those of other threads
        self._group = torch.distributed.new_group(backend="gloo", timeout=timeout) if ranks > 1 else None
        self._pending: tuple[Any, Tensor] | None = None  # of several processes
        self._own = 0, 0.0

    def start(self, signal: int, seconds: float) -> None:
        """Send this process's signal (0: none) and clock, without waiting for the others."""
        self._own = signal, seconds
        if self._group is None:
            return
        milliseconds = int(seconds * 1000) if self.rank == 0 else 0
        sums = torch.tensor([*(int(signal == number) for number in STOP_SIGNALS), milliseconds])
        self._pending = torch.distributed.all_reduce(sums, group=self._group, async_op=True), sums

    @property
    def is_pending(self) -> bool:
        """Whether a started agreement waits for its `finish`."""
        return self._pending is not None

    def gather(self, numbers: Tensor) -> list[Tensor]:
        """Return the numbers of all processes, by rank, each of one shape; a collective call."""
        if self._group is None:
            return [numbers]
        gathered = [torch.empty_like(numbers) for _ in range(self.ranks)]
        torch.distributed.all_gather(gathered, numbers, group=self._group)
        return gathered

    def finish(self) -> tuple[int, float]:
        """Return the signal (0: none) and the seconds that all processes agree on."""
        if self._pending is None:
            return self._own
        (work, sums), self._pending = self._pending, None
        work.wait()
        *counts, milliseconds = sums.tolist()
        signal = next((number for number, count in zip(STOP_SIGNALS, counts, strict=True) if count), 0)
        return signal, milliseconds / 1000
