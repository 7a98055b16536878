"""Tokens per second of training alone: time spent validating, sampling and saving does not count."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Throughput:
    """A stopwatch over steps, on the monotonic clock, so that clock changes do not matter."""

    def __init__(self) -> None:
        self.training_s = 0.0  # since the start of the process's training
        self.tokens = 0
        self.waited_s: float | None = None  # of `training_s`, for text; none where it was all there before
        self._marked = (0.0, 0)
        self._resumed_at: float | None = None

    def resume(self) -> None:
        """Start or go on counting time."""
        self._resumed_at = time.perf_counter()

    def pause(self) -> None:
        """Stop counting time."""
        if self._resumed_at is not None:
            self.training_s += time.perf_counter() - self._resumed_at
            self._resumed_at = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def add(self, tokens: int) -> None:
        """Count the tokens of a step that has ended."""
        self.tokens += tokens

    def tokens_per_s(self) -> float:
        """Return tokens per second since the last call."""
        if self._resumed_at is not None:
            with self.paused():
                pass
        elapsed_s, tokens = self.training_s - self._marked[0], self.tokens - self._marked[1]
        self._marked = (self.training_s, self.tokens)
        return tokens / elapsed_s if elapsed_s > 0 else 0.0

    def mean_tokens_per_s(self) -> float:
        """Return tokens per second over all of this process's training."""
        return self.tokens / self.training_s if self.training_s > 0 else 0.0
