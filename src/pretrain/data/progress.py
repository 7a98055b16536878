"""How far the reading of a corpus has come: a line now and then, with its pace and the time that is left."""

import sys
import time
from collections.abc import Callable

TERMINAL_S = 5.0  # between lines where somebody looks on
LINES_S = 30.0  # between lines of a log


class Progress:
    """Reports no more often than a reader wants, and nothing where all is done at once."""

    def __init__(
        self, report: Callable[[str], object], every_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.report, self.clock = report, clock
        self.every_s = every_s if every_s is not None else (TERMINAL_S if sys.stdout.isatty() else LINES_S)
        self._started = self._reported = clock()

    def is_due(self) -> bool:
        """Return whether it is time for a line."""
        return self.clock() - self._reported >= self.every_s

    def __call__(self, what: str, text_bytes: int, share: float | None = None) -> None:
        """Report `what` has been done, at which pace, and the time left where the share of the whole is known (0 to 1).

        `text_bytes` are those read since the start.
        """
        if not self.is_due():
            return
        self._reported = self.clock()
        seconds = self._reported - self._started
        pace = f"{text_bytes / 1e6:,.0f} MB at {text_bytes / 1e6 / seconds:,.1f} MB/s"
        left = f", {share:.0%}, {minutes(seconds * (1 - share) / share)} left" if share else ""
        self.report(f"{what}, {pace}{left} ...")

    def goes_on(self, what: str) -> None:
        """Report that `what`, of which nobody knows how much is left, goes on, and since when."""
        if self.is_due():
            self._reported = self.clock()
            self.report(f"{what}, {minutes(self._reported - self._started)} so far ...")


def minutes(seconds: float) -> str:
    """Return a time as minutes:seconds, such as 3:05 or 120:00."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
