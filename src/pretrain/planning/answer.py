"""The answer of `python src/plan.py`: a forecast, or a finished run's forecast against its measurements."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import CheckpointError
from pretrain.launch.run_folder import CONFIG, REPORT, TABLE, FinishedRun, read_rows, record_of, saved_settings
from pretrain.planning.config import PlanConfig
from pretrain.planning.fit import settings_that_fit
from pretrain.planning.forecast import Forecast, forecast, target_of
from pretrain.planning.printing import describe, duration, gib


def answer(config: PlanConfig) -> str:
    """Return the text that `python src/plan.py` prints for these settings."""
    if config.run is not None:
        return compare(config, config.run)
    target = target_of(config)
    found = forecast(config, target, simulate=config.dry_run)
    text = describe(found, config)
    if config.fit or not found.fits:
        text += "\n\n" + "\n".join(settings_that_fit(config, target))
    return text


@dataclass(frozen=True)
class Measured:
    """The figures of a finished run."""

    config: RunConfig
    parameters: int
    tokens: int  # read over the whole run
    tokens_per_s: float  # of all devices; the middle of what was logged
    memory_gib: float | None  # of the first process; none where it was not logged


def measured_by(folder: Path) -> Measured:
    """Read the figures of a finished run; raises CheckpointError where it has not ended or logged none."""
    for name in (CONFIG, REPORT):
        if not os.path.lexists(folder / name):
            raise CheckpointError(
                f"run={folder} holds no {name}: only a run that has come to its end can be compared. "
                "Try run=logs/gpt_nano/<time>."
            )
    config, report = saved_settings(folder), record_of(folder / REPORT, FinishedRun)
    logged = _logged(folder / TABLE)
    speeds = logged.get("speed/tokens_per_s", [])[1:] or [report.tokens_per_s or 0.0]  # the first step warms up
    if not (report.tokens_seen and all(0 < speed < math.inf for speed in speeds)):
        raise CheckpointError(
            f"run={folder} measured no speed: it read {report.tokens_seen} tokens, at {speeds[:3]} tokens/s. "
            "Try another run."
        )
    return Measured(
        config=config,
        parameters=report.parameters,
        tokens=report.tokens_seen,
        tokens_per_s=median(speeds),
        memory_gib=max((gib for gib in logged.get("speed/memory_gib", []) if 0 < gib < math.inf), default=None),
    )


def _logged(path: Path) -> dict[str, list[float]]:
    """Return the figures of metrics.csv by name, in the order of the steps; nothing where there is no such file."""
    found: dict[str, list[float]] = {}
    for row in read_rows(path):
        found.setdefault(row["name"], []).append(float(row["value"]))
    return found


def compare(config: PlanConfig, run: str) -> str:
    """Return a table of forecast, measurement and error of a finished run, on the device of `config`.

    Raises CheckpointError where the run has not ended.
    """
    folder = Path(run)
    measured = measured_by(folder)
    settings = {f.name: getattr(measured.config, f.name) for f in fields(RunConfig)}
    vocab_size = Tokenizer.load(open_checkpoint(folder).tokenizer_folder).vocab_size
    planned = replace(config, run=None, vocab_size=vocab_size, **settings)
    found = forecast(planned, target_of(planned), simulate=config.dry_run)
    rows: list[tuple[str, float, float, Callable[[float], str]]] = [
        ("parameters", float(found.work.parameters), float(measured.parameters), "{:,.0f}".format),
        ("tokens/s", found.cost.tokens_per_s, measured.tokens_per_s, "{:,.0f}".format),
        (
            "time in steps",
            measured.tokens / found.cost.tokens_per_s,
            measured.tokens / measured.tokens_per_s,
            duration,
        ),
    ]
    if measured.memory_gib is not None:
        name, expected = _memory(found)
        rows.append((name, expected, measured.memory_gib * 2**30, gib))
    width = max(len(name) for name, *_ in rows)
    lines = [
        f"{run}, as planned for {found.target.hardware.name}",
        f"  {'':<{width}} {'forecast':>14} {'measured':>14}  error",
    ]
    for name, expected, seen, shown in rows:
        lines.append(f"  {name:<{width}} {shown(expected):>14} {shown(seen):>14}  {expected / seen - 1:+.1%}")
    return "\n".join(lines)


def _memory(found: Forecast) -> tuple[str, float]:
    """Return the name of the run's memory figure, and its forecast in bytes.

    A GPU's is the peak of its tensors. A CPU's is the memory of the process between two steps, libraries included.
    """
    if found.target.hardware.gpu:
        return "peak memory", float(found.peak)
    memory = found.estimate
    held = memory.weights + memory.optimizer + memory.buckets + memory.gradients
    return "memory between steps", float(held + found.target.hardware.reserved)
