"""Run training processes side by side in turns: each takes a few steps when asked, then waits.

A baseline is a process of its own, so that peak memory is its own and libraries do not change each other's settings. It
calls `Turn.step()` before every step; the call returns at once during its turn, and otherwise waits for the next turn.
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
    """The baseline's side: take steps when asked; `gpu` if they are computed on a GPU."""

    def __init__(self, gpu: bool = False) -> None:
        self._gpu = gpu
        self._replies = os.fdopen(os.dup(1), "w")  # a copy of stdout: output of libraries must not look like a reply
        os.dup2(2, 1)
        self._left = 0
        self._since = 0.0
        self._steps = 0

    def step(self) -> None:
        """Return when the next step may be taken; end the process if there is none."""
        if self._left == 0:
            if self._steps:
                self._wait()
                self._reply(seconds=(time.perf_counter() - self._since) / self._steps)
            else:
                self._reply(seconds=0.0)
            request = sys.stdin.readline().strip()
            if not request or request == "0":
                os._exit(0)  # without cleanup, in the middle of a fit(): nothing must be saved
            self._left = self._steps = int(request)
            self._wait()
            self._since = time.perf_counter()
        self._left -= 1

    def _wait(self) -> None:
        if self._gpu:
            torch.cuda.synchronize()

    def _reply(self, **figures: float) -> None:
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if self._gpu:
            peak_mib = torch.cuda.max_memory_allocated() / 2**20
        self._replies.write(json.dumps(figures | {"peak_mib": peak_mib}) + "\n")
        self._replies.flush()


class BaselineEnded(Exception):  # noqa: N818  (not an error if the others continue)
    """The process of a baseline has ended."""


class Baseline:
    """The benchmark's side: start a baseline and give it turns."""

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
        """Take `steps` steps; return seconds per step and the peak MiB of the process."""
        self.begin(steps)
        return self.answer()

    def begin(self, steps: int) -> None:
        """Start taking `steps` steps; `answer` waits for them."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `answer` reports that the process has ended
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def answer(self) -> dict[str, float]:
        """Return the next reply, one at the start and one per turn: seconds per step and peak MiB.

        Raises BaselineEnded if the process has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BaselineEnded(f"ended with exit code {self._process.wait()}: see above")
        found: dict[str, float] = json.loads(line)
        return found


def ask(
    running: list[Baseline], baseline: Baseline, steps: int | None, missing: dict[str, str]
) -> dict[str, float] | None:
    """Return the reply of a baseline after `steps` more steps; its next reply if `steps` is None.

    If its process has ended, it is removed from `running` and recorded in `missing`, and None is returned. Raises
    SystemExit if it is the first one, with which all others are compared.
    """
    try:
        return baseline.answer() if steps is None else baseline.take(steps)
    except BaselineEnded as ended:
        baseline.end()
        if baseline is running[0]:
            for each in running[1:]:
                each.end()
            raise SystemExit(f"baseline {baseline.name} {ended}") from ended
        missing[baseline.name] = str(ended)
        running.remove(baseline)
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
    """Return by baseline seconds per step, one value per round, and the peak MiB of its process.

    A baseline that ends too early is recorded in `missing` and left out, as `ask` describes.
    """
    running: list[Baseline] = []
    for name, command in commands.items():
        running.append(Baseline(name, command, (environments or {}).get(name)))
        ask(running, running[-1], None, missing)
    for each in running.copy():
        ask(running, each, warm_up, missing)
    return take_rounds(running, rounds, steps, missing)


def take_rounds(
    running: list[Baseline], rounds: int, steps: int, missing: dict[str, str]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Measure baselines that are warmed up, as `race` does, and end them."""
    seconds: dict[str, list[float]] = {each.name: [] for each in running}
    peaks: dict[str, float] = {}
    try:
        for number in range(rounds):
            shift = number % len(running)
            for each in [*running[shift:], *running[:shift]]:
                found = ask(running, each, steps, missing)
                if found is not None:
                    seconds[each.name].append(found["seconds"])
                    peaks[each.name] = found["peak_mib"]
    finally:
        for each in running:
            each.end()
    names = [each.name for each in running]
    return {name: seconds[name] for name in names}, {name: peaks[name] for name in names if name in peaks}
