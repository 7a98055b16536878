"""The time of a run: in steps, and in what steps wait for."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Throughput:
    """A stopwatch over the steps of a process, on the monotonic clock."""

    def __init__(self) -> None:
        self.started_at = time.perf_counter()
        self._counted_s = 0.0  # in steps, up to the last pause
        self.other_s: defaultdict[str, float] = defaultdict(float)  # seconds of waiting, by reason
        self.times: Counter[str] = Counter()  # number of waits, by reason
        self.tokens = 0
        self._marked = (0.0, 0)
        self._resumed_at: float | None = None
        self._paused: tuple[str, float] | None = None

    @property
    def training_s(self) -> float:
        """Seconds in steps since the process started to train."""
        return self._counted_s + (0.0 if self._resumed_at is None else time.perf_counter() - self._resumed_at)

    def resume(self) -> None:
        """Start or continue to count time as steps."""
        self._resumed_at = time.perf_counter()
        if self._paused is not None:
            reason, since = self._paused
            self.other_s[reason] += self._resumed_at - since
            self.times[reason] += 1
            self._paused = None

    def pause(self, reason: str) -> None:
        """Count the time until `resume` for this reason."""
        now = time.perf_counter()
        if self._resumed_at is not None:
            self._counted_s += now - self._resumed_at
            self._resumed_at = None
        self._paused = (reason, now)

    @contextmanager
    def paused(self, reason: str) -> Iterator[None]:
        """Count the time of the block for this reason."""
        self.pause(reason)
        try:
            yield
        finally:
            self.resume()

    def position(self) -> tuple[float, int]:
        """Return the seconds in steps and the tokens so far, for `lose`."""
        return self.training_s, self.tokens

    def lose(self, since: tuple[float, int], share: float, reason: str) -> None:
        """Move a share of the time in steps since a `position` to this reason, and forget its share of the tokens."""
        since_s, since_tokens = since
        lost, tokens = share * (self.training_s - since_s), round(share * (self.tokens - since_tokens))
        self._counted_s -= lost
        self.tokens -= tokens
        self._marked = (self._marked[0] - lost, self._marked[1] - tokens)
        self.other_s[reason] += lost
        self.times[reason] += 1

    def add(self, tokens: int) -> None:
        """Count the tokens of a micro-batch that has ended."""
        self.tokens += tokens

    def tokens_per_s(self) -> float:
        """Return tokens per second of steps since the last call."""
        training_s = self.training_s
        elapsed_s, tokens = training_s - self._marked[0], self.tokens - self._marked[1]
        self._marked = (training_s, self.tokens)
        return tokens / elapsed_s if elapsed_s > 0 else 0.0

    def mean_tokens_per_s(self) -> float:
        """Return tokens per second of steps over all of this process's training."""
        return self.tokens / self.training_s if self.training_s > 0 else 0.0

    def wall_s(self) -> float:
        """Return the seconds since the run began to set up."""
        return time.perf_counter() - self.started_at

    def goodput(self) -> float:
        """Return the share of the time since the run began that went into steps."""
        return self.training_s / max(1e-9, self.wall_s())

    def checkpoint_s(self) -> float:
        """Return the mean seconds that a step waited for a checkpoint; 0 if there was none."""
        return self.other_s["checkpoints"] / max(1, self.times["checkpoints"])
