"""The samples of each step of a run whose batch size may change, those of steps ahead included.

A run's position in its data is the number of samples read: after a change, the next step reads the next sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Annotated, Any

from pretrain.errors import CheckpointError
from pretrain.files.records import AtLeast, Count, read_record

MAX_CHANGES = 10_000


@dataclass(frozen=True)
class StepSize:
    """The samples and tokens of one optimizer step."""

    batch_size: Annotated[int, AtLeast(1)]  # samples
    tokens_per_step: Annotated[int, AtLeast(1)]  # padding included
    order: str  # digest of the settings that decide the row of a sample


@dataclass(frozen=True)
class _Stretch(StepSize):
    """Consecutive steps of one size."""

    steps: Count  # optimizer steps of the run before it
    samples: Count  # read in them
    tokens: Count  # read in them


@dataclass(frozen=True)
class BatchSizes:
    """The sizes of a run's steps, past and planned; the last one holds for all further steps."""

    _stretches: tuple[_Stretch, ...]

    @classmethod
    def constant(cls, size: StepSize) -> BatchSizes:
        """Return the sizes of a run whose steps all have one size."""
        return cls((_Stretch(**asdict(size), steps=0, samples=0, tokens=0),))

    @classmethod
    def saved(cls, progress: dict[str, Any], size: StepSize, warmup: Sequence[int] = ()) -> BatchSizes:
        """Return the sizes in a checkpoint's trainer state; constant if it has none.

        `size` is the size by the checkpoint's settings, and `warmup` the batch sizes on the way to it. Raises
        CheckpointError for sizes that no run can have.
        """
        if "batch_sizes" not in progress:
            return cls.constant(size)
        try:
            written = read_record(_Saved, progress, "progress").batch_sizes
        except ValueError:
            written = []
        if not _is_sound(written) or written[-1].batch_size not in (size.batch_size, *warmup):
            raise CheckpointError(
                "the checkpoint's progress.batch_sizes in manifest.json is damaged, so the samples that its run has "
                "read are unknown. Take another checkpoint, or start anew with init_from=<run>."
            )
        return cls(tuple(written))

    def record(self, steps: int) -> list[dict[str, Any]]:
        """Return the sizes of the first `steps` steps as plain data, for `saved`."""
        return [asdict(stretch) for stretch in self.cut(steps)._stretches]

    def cut(self, steps: int) -> BatchSizes:
        """Return the sizes of the first `steps` steps; the last one holds for all further steps."""
        return BatchSizes(tuple(each for each in self._stretches if each.steps < steps or not each.steps))

    def changed(self, steps: int, size: StepSize) -> BatchSizes:
        """Return the sizes if all steps after the first `steps` have this size."""
        before = tuple(stretch for stretch in self._stretches if stretch.steps < steps)
        if before and all(getattr(before[-1], name) == value for name, value in asdict(size).items()):
            return BatchSizes(before)
        new = _Stretch(**asdict(size), steps=steps, samples=self.samples(steps), tokens=self.tokens(steps))
        return BatchSizes((*before, new))

    def planned(self, steps: int, sizes: Sequence[tuple[int, StepSize]], since: int = 0) -> BatchSizes:
        """Return the sizes if the steps after the first `steps` have these, of a batch that grows.

        Each holds from the first step after that many tokens, counted from `since` tokens of the run on; the first
        one from the start.
        """
        planned = self.changed(steps, sizes[0][1])
        for tokens, size in sizes[1:]:
            planned = planned.changed(max(steps, planned.steps_to(since + tokens)), size)
        return planned

    def batch_size(self, step: int) -> int:
        """Return the samples of a step, counted from 0."""
        return self._at(step).batch_size

    def order_begins(self, step: int) -> int:
        """Return the first sample of the order of rows that a step (from 0) reads in."""
        order, first = self._at(step).order, self._at(step).samples
        for stretch in reversed([each for each in self._stretches if each.steps <= step]):
            if stretch.order != order:
                break
            first = stretch.samples
        return first

    def samples(self, steps: int) -> int:
        """Return the number of samples that the first `steps` steps read."""
        stretch = self._at(steps)
        return stretch.samples + (steps - stretch.steps) * stretch.batch_size

    def tokens(self, steps: int) -> int:
        """Return the number of tokens that the first `steps` steps read, padding included."""
        stretch = self._at(steps)
        return stretch.tokens + (steps - stretch.steps) * stretch.tokens_per_step

    def steps_within(self, tokens: int) -> int:
        """Return the largest number of steps that read at most `tokens` tokens."""
        stretch = next(stretch for stretch in reversed(self._stretches) if stretch.tokens <= tokens)
        return stretch.steps + (tokens - stretch.tokens) // stretch.tokens_per_step

    def steps_to(self, tokens: int) -> int:
        """Return the smallest number of steps that read at least `tokens` tokens."""
        steps = self.steps_within(tokens)
        return steps if self.tokens(steps) >= tokens else steps + 1

    def steps_reading(self, samples: int) -> int:
        """Return the smallest number of steps that read at least `samples` samples."""
        stretch = next(stretch for stretch in reversed(self._stretches) if stretch.samples <= samples)
        return stretch.steps + -(-(samples - stretch.samples) // stretch.batch_size)

    def order_changed_at(self, step: int) -> int | None:
        """Return the last step, `step` (from 1) or later, after which the row order changed, or None.

        The rows of steps up to that one cannot be found by the current settings.
        """
        newest = self._stretches[-1].order
        later = [
            after.steps for before, after in pairwise(self._stretches) if before.order != newest and after.steps >= step
        ]
        return max(later, default=None)

    def _at(self, steps: int) -> _Stretch:
        return next(stretch for stretch in reversed(self._stretches) if stretch.steps <= steps)


@dataclass(frozen=True)
class _Saved:
    batch_sizes: list[_Stretch]


def _is_sound(written: list[_Stretch]) -> bool:
    """Return whether each stretch starts with the totals at the end of the one before."""
    if not 1 <= len(written) <= MAX_CHANGES or (written[0].steps, written[0].samples, written[0].tokens) != (0, 0, 0):
        return False
    for before, after in pairwise(written):
        steps = after.steps - before.steps
        samples = before.samples + steps * before.batch_size
        tokens = before.tokens + steps * before.tokens_per_step
        if steps < 1 or (after.samples, after.tokens) != (samples, tokens):
            return False
    return True
