"""Progress lines of corpus reading, with throughput and time left."""

import sys
import time
from collections.abc import Callable

TERMINAL_S = 5.0  # between lines on a terminal
LINES_S = 30.0  # between lines in a log file


class Progress:
    """Reports progress at most every `every_s` seconds, so nothing if the work is shorter."""

    def __init__(
        self, report: Callable[[str], object], every_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.report, self.clock = report, clock
        self.every_s = every_s if every_s is not None else (TERMINAL_S if sys.stdout.isatty() else LINES_S)
        self._started = self._reported = clock()

    def is_due(self) -> bool:
        """Return whether the next line is due."""
        return self.clock() - self._reported >= self.every_s

    def __call__(self, what: str, text_bytes: int, share: float | None = None) -> None:
        """Report `what` is done and its throughput, and the time left if the `share` done (0 to 1) is known.

        `text_bytes`: bytes read since the start.
        """
        if not self.is_due():
            return
        self._reported = self.clock()
        seconds = self._reported - self._started
        throughput = f"{text_bytes / 1e6:,.0f} MB at {text_bytes / 1e6 / seconds:,.1f} MB/s"
        left = f", {share:.0%}, {minutes(seconds * (1 - share) / share)} left" if share else ""
        self.report(f"{what}, {throughput}{left} ...")

    def report_waiting(self, what: str) -> None:
        """Report the elapsed time of `what`, whose remaining time is unknown."""
        if self.is_due():
            self._reported = self.clock()
            self.report(f"{what}, {minutes(self._reported - self._started)} so far ...")


def minutes(seconds: float) -> str:
    """Return a time as minutes:seconds, such as 3:05 or 120:00."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
