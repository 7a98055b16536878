"""Which samples each step of a run reads, where its batch size may have changed on the way.

A run's place in its data is the number of samples that it has read: a changed batch size goes on behind the last one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Annotated, Any

from pretrain.errors import CheckpointError
from pretrain.files.records import AtLeast, Count, read_record

MAX_CHANGES = 10_000


@dataclass(frozen=True)
class StepSize:
    """What one optimizer step reads."""

    batch_size: Annotated[int, AtLeast(1)]  # samples
    tokens_per_step: Annotated[int, AtLeast(1)]  # padding included
    order: str  # digest of the settings that decide which row a sample is


@dataclass(frozen=True)
class _Stretch(StepSize):
    """Successive steps of one size."""

    steps: Count  # optimizer steps of the run before it
    samples: Count  # read in them
    tokens: Count  # read in them


@dataclass(frozen=True)
class BatchSizes:
    """The sizes of a run's steps, one after another; the last holds for all steps to come."""

    _stretches: tuple[_Stretch, ...]

    @classmethod
    def constant(cls, size: StepSize) -> BatchSizes:
        """Return those of a run whose steps are all alike."""
        return cls((_Stretch(**asdict(size), steps=0, samples=0, tokens=0),))

    @classmethod
    def saved(cls, progress: dict[str, Any], size: StepSize) -> BatchSizes:
        """Return those in a checkpoint's progress; `size` is by its settings, and of one without them always was.

        Raises CheckpointError where they cannot be those of a run.
        """
        if "batch_sizes" not in progress:
            return cls.constant(size)
        try:
            written = read_record(_Saved, progress, "progress").batch_sizes
        except ValueError:
            written = []
        if not _is_sound(written) or written[-1].batch_size != size.batch_size:
            raise CheckpointError(
                "the checkpoint's progress.batch_sizes in manifest.json is damaged, so what its run has read is not "
                "known. Take another checkpoint, or start anew with init_from=<run>."
            )
        return cls(tuple(written))

    def record(self) -> list[dict[str, Any]]:
        """Return what `saved` reads again, as plain data."""
        return [asdict(stretch) for stretch in self._stretches]

    def changed(self, steps: int, size: StepSize) -> BatchSizes:
        """Return those of the run where all steps behind the first `steps` have this size."""
        last = self._stretches[-1]
        if all(getattr(last, name) == value for name, value in asdict(size).items()):
            return self
        before = tuple(stretch for stretch in self._stretches if stretch.steps < steps)
        new = _Stretch(**asdict(size), steps=steps, samples=self.samples(steps), tokens=self.tokens(steps))
        return BatchSizes((*before, new))

    @property
    def offset(self) -> int:
        """The sample at which step 0 would have begun, had all steps been of the newest size: 0 where they were."""
        last = self._stretches[-1]
        return last.samples - last.steps * last.batch_size

    def samples(self, steps: int) -> int:
        """Return how many samples the first `steps` steps read: the number of the next one."""
        stretch = self._at(steps)
        return stretch.samples + (steps - stretch.steps) * stretch.batch_size

    def tokens(self, steps: int) -> int:
        """Return how many tokens, padding included, the first `steps` steps read."""
        stretch = self._at(steps)
        return stretch.tokens + (steps - stretch.steps) * stretch.tokens_per_step

    def steps_within(self, tokens: int) -> int:
        """Return the most steps that read no more than so many tokens."""
        stretch = next(each for each in reversed(self._stretches) if each.tokens <= tokens)
        return stretch.steps + (tokens - stretch.tokens) // stretch.tokens_per_step

    def steps_to(self, tokens: int) -> int:
        """Return the fewest steps that read so many tokens or more."""
        steps = self.steps_within(tokens)
        return steps if self.tokens(steps) >= tokens else steps + 1

    def order_changed_at(self, step: int) -> int | None:
        """Return after which step, at or behind `step` (from 1), the order of the rows last changed; none: it did not.

        The rows of steps up to there cannot be found again by the newest settings.
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
    """Return whether each stretch begins with the steps, samples and tokens that those before it end with."""
    if not 1 <= len(written) <= MAX_CHANGES or (written[0].steps, written[0].samples, written[0].tokens) != (0, 0, 0):
        return False
    for before, after in pairwise(written):
        steps = after.steps - before.steps
        samples = before.samples + steps * before.batch_size
        tokens = before.tokens + steps * before.tokens_per_step
        if steps < 1 or (after.samples, after.tokens) != (samples, tokens):
            return False
    return True
