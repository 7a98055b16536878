"""Train small runs with the code of all runs, and compare two of them."""

import math
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.run import RunConfig
from pretrain.launch.run_folder import read_rows
from pretrain.launch.run_plan import resolve_run, to_record
from pretrain.training.elastic import spawn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def train_here(config: RunConfig, *overrides: str) -> Path:
    """Train in this process; `overrides` apply when resuming. Returns the run folder."""
    from pretrain.training.train import run  # here: settings are checked before Lightning is loaded

    run_plan = resolve_run(config, list(overrides))
    run(run_plan)
    return run_plan.folder


def train_in_processes(config: RunConfig) -> Path:
    """Train in `trainer.devices` processes; return the run folder."""
    run_plan = resolve_run(config, [])
    with _signal_handlers_restored():
        spawn(to_record(run_plan))
    return run_plan.folder


def in_folder(config: RunConfig, folder: Path) -> RunConfig:
    """Return the settings with `folder` as run folder."""
    return replace(config, paths=replace(config.paths, run_dir=str(folder)))


def figures(run: Path, name: str) -> list[float]:
    """Return the values of a metric in a run's metrics.csv, ordered by step."""
    rows = {int(row["step"]): float(row["value"]) for row in read_rows(run / "metrics.csv") if row["name"] == name}
    return [rows[step] for step in sorted(rows)]


def state_difference(one: Path, other: Path, *parts: str) -> float:
    """Return the largest absolute difference of two runs' newest checkpoints; 0 only if all bits are equal.

    Infinite if names, shapes or steps differ, or for NaN.
    """
    a, b = open_checkpoint(one), open_checkpoint(other)
    if a.step != b.step:
        return math.inf
    return max((_difference(a.tensors(part), b.tensors(part)) for part in parts), default=0.0)


def figure_difference(one: list[float], other: list[float]) -> float:
    """Return the largest absolute difference of two curves; infinite for unequal lengths, no values, or NaN."""
    if not one or len(one) != len(other):
        return math.inf
    differences = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return max(math.inf if math.isnan(difference) else difference for difference in differences)


def _difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        return math.inf
    largest = 0.0
    for name in a:
        if not torch.equal(a[name], b[name]):
            difference = float((a[name].double() - b[name].double()).abs().max())
            largest = max(largest, difference if 0.0 < difference < math.inf else math.inf)
    return largest


@contextmanager
def _signal_handlers_restored() -> Iterator[None]:
    """Restore signal handlers on exit: those of the process launcher would keep this process from stopping."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
