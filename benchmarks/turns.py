"""Processes that train side by side and take turns: each runs a few steps when it is told to, and stops.

A baseline is a process of its own, so that peak memory is its own and no library changes another's settings. It calls
`Turn.step()` before every step; the call returns at once while its turn lasts and else waits for the next turn.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch


class Turn:
    """A baseline's side: its steps, when it is told to take them; `gpu` says where they are computed."""

    def __init__(self, gpu: bool = False) -> None:
        self._gpu = gpu
        self._talk = os.fdopen(os.dup(1), "w")  # what libraries print must not be taken for answers
        os.dup2(2, 1)
        self._left = 0
        self._since = 0.0
        self._steps = 0

    def step(self) -> None:
        """Begin a step: return when it may be taken; ends the process when there is to be none any more."""
        if self._left == 0:
            if self._steps:
                self._wait()
                self._tell(seconds=(time.perf_counter() - self._since) / self._steps)
            else:
                self._tell(seconds=0.0)
            told = sys.stdin.readline().strip()
            if not told or told == "0":
                os._exit(0)  # in the middle of a fit(): nothing is to be saved
            self._left = self._steps = int(told)
            self._wait()
            self._since = time.perf_counter()
        self._left -= 1

    def _wait(self) -> None:
        if self._gpu:
            torch.cuda.synchronize()

    def _tell(self, **figures: float) -> None:
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if self._gpu:
            peak_mib = torch.cuda.max_memory_allocated() / 2**20
        self._talk.write(json.dumps(figures | {"peak_mib": peak_mib}) + "\n")
        self._talk.flush()


class ContenderEnded(Exception):  # noqa: N818  (not an error where the others go on)
    """A baseline's process is there no more."""


class Baseline:
    """The other side: starts a baseline and gives it turns."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def take(self, steps: int) -> dict[str, float]:
        """Return seconds a step and peak MiB of the process after so many steps more."""
        self.begin(steps)
        return self.answer()

    def begin(self, steps: int) -> None:
        """Have it take so many steps; `answer` waits for them."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `answer` tells that it is there no more
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()

    def end(self) -> None:
        """Let it go."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def answer(self) -> dict[str, float]:
        """Return what it says next: first, and then after each turn, seconds a step and peak MiB of the process.

        Raises ContenderEnded where it is there no more.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ContenderEnded(f"ended with exit code {self._process.wait()}: see above")
        found: dict[str, float] = json.loads(line)
        return found


def ask(
    there: list[Baseline], baseline: Baseline, steps: int | None, missing: dict[str, str]
) -> dict[str, float] | None:
    """Return what a baseline says after so many steps more, with None what it says next.

    One whose process is there no more is taken from `there`, entered in `missing`, and None is returned; SystemExit
    where that is the first one, to which all others are compared.
    """
    try:
        return baseline.answer() if steps is None else baseline.take(steps)
    except ContenderEnded as ended:
        baseline.end()
        if baseline is there[0]:
            for each in there[1:]:
                each.end()
            raise SystemExit(f"baseline {baseline.name} {ended}") from ended
        missing[baseline.name] = str(ended)
        there.remove(baseline)
        return None


def race(
    commands: Mapping[str, Sequence[str]],
    *,
    rounds: int,
    steps: int,
    warm_up: int,
    missing: dict[str, str],
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return seconds a step by baseline, a figure a round, and by baseline the peak MiB of its process.

    A baseline that ends too early is entered in `missing` and left out, as `ask` says.
    """
    there: list[Baseline] = []
    for name, command in commands.items():
        there.append(Baseline(name, command, (environments or {}).get(name)))
        ask(there, there[-1], None, missing)
    for each in there.copy():
        ask(there, each, warm_up, missing)
    return take_rounds(there, rounds, steps, missing)


def take_rounds(
    there: list[Baseline], rounds: int, steps: int, missing: dict[str, str]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return what `race` does of baselines that are warm, and let them go."""
    seconds: dict[str, list[float]] = {each.name: [] for each in there}
    peaks: dict[str, float] = {}
    try:
        for number in range(rounds):
            shift = number % len(there)
            for each in [*there[shift:], *there[:shift]]:
                found = ask(there, each, steps, missing)
                if found is not None:
                    seconds[each.name].append(found["seconds"])
                    peaks[each.name] = found["peak_mib"]
    finally:
        for each in there:
            each.end()
    names = [each.name for each in there]
    return {name: seconds[name] for name in names}, {name: peaks[name] for name in names if name in peaks}
