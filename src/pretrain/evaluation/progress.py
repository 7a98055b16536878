"""How far a long evaluation has come: a bar in a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Any

from tqdm import tqdm

from pretrain.errors import printable

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows what it is told, on the error stream, and nothing where all is done at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: Any = None
        self._started = self._shown = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` tokens have been read."""
        if sys.stderr.isatty():
            if self.bar is None:
                self.bar = tqdm(
                    total=total,
                    desc=printable(self.name, one_line=True),
                    unit="token",
                    unit_scale=True,
                    dynamic_ncols=True,
                )
            self.bar.update(done - self.bar.n)
            if done == total:
                self.bar.close()
                self.bar = None
        elif (now := time.perf_counter()) - self._shown >= SECONDS_BETWEEN_LINES:
            left = int((now - self._started) * (total - done) / done)
            line = f"{self.name} {done / total:.0%}  {left // 60}:{left % 60:02d} left"
            print(printable(line, one_line=True), file=sys.stderr, flush=True)
            self._shown = now
