"""Train small runs by the code of any run, and compare two of them."""

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

PARTS = ("model", "optimizer", "random")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def train_here(config: RunConfig, *words: str) -> Path:
    """Train in this process, on resume with these overrides; return the run folder."""
    from pretrain.training.train import run  # here: settings are checked before Lightning is loaded

    run_plan = resolve_run(config, list(words))
    run(run_plan)
    return run_plan.folder


def train_in_processes(config: RunConfig) -> Path:
    """Train in one process for each of `trainer.devices`; return the run folder."""
    run_plan = resolve_run(config, [])
    with _signals_kept():
        spawn(to_record(run_plan))
    return run_plan.folder


def in_folder(config: RunConfig, folder: Path) -> RunConfig:
    """Return the settings of a run in this folder."""
    return replace(config, paths=replace(config.paths, run_dir=str(folder)))


def figures(run: Path, name: str) -> list[float]:
    """Return the values of a metric from a run's metrics.csv, in the order of their steps."""
    rows = {int(row["step"]): float(row["value"]) for row in read_rows(run / "metrics.csv") if row["name"] == name}
    return [rows[step] for step in sorted(rows)]


def state_difference(one: Path, other: Path, *parts: str) -> float:
    """Return the largest difference of two runs' newest checkpoints; 0 only where all bits are equal.

    Infinite where names, shapes or steps differ, or for NaN.
    """
    a, b = open_checkpoint(one), open_checkpoint(other)
    if a.step != b.step:
        return math.inf
    return max((_difference(a.tensors(part), b.tensors(part)) for part in parts), default=0.0)


def figure_difference(one: list[float], other: list[float]) -> float:
    """Return the largest difference of two curves; infinite for unequal lengths, no values, or NaN."""
    if not one or len(one) != len(other):
        return math.inf
    found = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return max(math.inf if math.isnan(each) else each for each in found)


def _difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        return math.inf
    largest = 0.0
    for name in a:
        if not torch.equal(a[name], b[name]):
            off = float((a[name].double() - b[name].double()).abs().max())
            largest = max(largest, off if 0.0 < off < math.inf else math.inf)
    return largest


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Restore signal handlers: the process launcher installs its own, which would keep this process from stopping."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
