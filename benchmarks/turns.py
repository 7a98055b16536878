"""Processes that train side by side and take turns: each runs a few steps when it is told to, and stops.

A contender is a process of its own, so that peak memory is its own and no library changes another's settings. It calls
`Turn.step()` before every step; the call returns at once while its turn lasts and else waits for the next turn.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any


class Turn:
    """A contender's side: its steps, when it is told to take them."""

    def __init__(self) -> None:
        self._talk = os.fdopen(os.dup(1), "w")  # what libraries print must not be taken for answers
        os.dup2(2, 1)
        self._left = 0
        self._since = 0.0
        self._steps = 0

    def step(self) -> None:
        """Begin a step: return when it may be taken; ends the process when there is to be none any more."""
        if self._left == 0:
            if self._steps:
                self._tell(seconds=(time.perf_counter() - self._since) / self._steps)
            else:
                self._tell(seconds=0.0)
            told = sys.stdin.readline().strip()
            if not told or told == "0":
                os._exit(0)  # in the middle of a fit(): nothing is to be saved
            self._left = self._steps = int(told)
            self._since = time.perf_counter()
        self._left -= 1

    def _tell(self, **figures: float) -> None:
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self._talk.write(json.dumps(figures | {"peak_mib": peak_mib}) + "\n")
        self._talk.flush()


class Contender:
    """The other side: starts a contender and gives it turns."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.ready = self._answer()  # peak memory before the first step

    def take(self, steps: int) -> dict[str, float]:
        """Return seconds a step and peak MiB of the process after so many steps more."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Let it go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"contender {self.name} ended with exit code {self._process.wait()}: see above")
        found: dict[str, float] = json.loads(line)
        return found


def race(
    commands: Mapping[str, Sequence[str]],
    *,
    rounds: int,
    steps: int,
    warm_up: int,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return seconds a step by contender, a figure a round, and by contender the peak MiB of its process."""
    contenders = [Contender(name, command, (environments or {}).get(name)) for name, command in commands.items()]
    seconds: dict[str, list[float]] = {each.name: [] for each in contenders}
    peaks: dict[str, Any] = {}
    try:
        for each in contenders:
            each.take(warm_up)
        for number in range(rounds):
            shift = number % len(contenders)
            for each in contenders[shift:] + contenders[:shift]:
                found = each.take(steps)
                seconds[each.name].append(found["seconds"])
                peaks[each.name] = found["peak_mib"]
    finally:
        for each in contenders:
            each.end()
    return seconds, peaks
