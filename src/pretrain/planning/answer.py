"""What `python src/plan.py` prints: a forecast, or a finished run's forecast beside its measurements."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.run import AUTO, RunConfig
from pretrain.config.stages import Stage, course_of
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import CheckpointError
from pretrain.launch.run_folder import (
    CONFIG,
    REPORT,
    TABLE,
    FinishedRun,
    newest_finished,
    read_rows,
    record_of,
    saved_settings,
)
from pretrain.planning.chosen_size import fit_to_text
from pretrain.planning.config import PlanConfig
from pretrain.planning.cost import Growth
from pretrain.planning.fit import settings_that_fit
from pretrain.planning.forecast import Forecast, Target, forecast, target_of, with_text_of
from pretrain.planning.micro_batch import largest_micro_batch
from pretrain.planning.printing import describe
from pretrain.planning.units import duration, gib


def answer(config: PlanConfig, typed: Mapping[str, str] | None = None) -> str:
    """Return the text that `python src/plan.py` prints for these settings; those `typed`, by name, stay with a size."""
    return forecast_in_words(config, typed)[0]


def forecast_in_words(config: PlanConfig, typed: Mapping[str, str] | None = None) -> tuple[str, Forecast | None]:
    """Return that text, and the forecast that it is made of; None where it compares a finished run."""
    if config.run is not None:
        return compare(config, config.run), None
    target = target_of(config)
    config, chosen = fit_to_text(config, target, typed or {})
    if config.micro_batch_size == AUTO:
        config, line = largest_micro_batch(config, target)
        chosen.append(line)
    config, planned, stages = _of_largest_stage(config, target)
    text = "\n\n".join(filter(None, ["\n".join(chosen), "\n".join(stages), describe(planned, config)]))
    if config.fit or not planned.fits:
        text += "\n\n" + "\n".join(settings_that_fit(config, target))
    return text, planned


def _of_largest_stage(config: PlanConfig, target: Target) -> tuple[PlanConfig, Forecast, list[str]]:
    """Return the settings and the forecast of the stage that needs most memory, and a table of all stages.

    Of a run without stages they are its own, and the table has no line.
    """
    if not config.stages:
        return config, forecast(config, target, simulate=config.dry_run), []
    course = course_of(config)
    planned: list[tuple[PlanConfig, Forecast]] = []
    rows = [["stage", "steps", "tokens", "a step", "peak memory", "time"]]
    seconds: list[float | None] = []
    minutes = config.trainer.max_time  # that are left for a stage
    for stage in course.stages:
        if stage.end == stage.begin:
            continue
        of_stage = _settings_of(config, stage, minutes)
        of_text = with_text_of(of_stage, target, config.data) if stage.text else target
        found = forecast(of_stage, of_text, config.dry_run, Growth(course.sizes, stage.begin))
        planned.append((of_stage, found))
        is_reached = minutes is None or minutes > 0.0
        rows.append([stage.name, *_figures(found, is_reached)])
        if is_reached:
            seconds.append(found.cost.seconds)
        if minutes is not None:
            is_whole = stage.end is not None and found.cost.steps == stage.end - stage.begin
            minutes = max(0.0, minutes - (found.cost.seconds or 0.0) / 60) if is_whole else 0.0
    largest, found = max(planned, key=lambda each: each[1].peak)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if None not in seconds:
        lines.append(f"  all stages: {duration(sum(each or 0.0 for each in seconds))}")
    name = rows[1 + [each[1] for each in planned].index(found)][0]
    return largest, found, ["Stages", *lines, f"Below: stage {name}, which needs the most memory, for all its steps"]


def _settings_of(config: PlanConfig, stage: Stage, minutes: float | None) -> PlanConfig:
    """Return the settings of a plan for a stage alone, as long as it is, or as the `minutes` left for it are."""
    of_stage = {f.name: getattr(stage.config, f.name) for f in fields(RunConfig)}
    of_stage["trainer"] = replace(stage.config.trainer, max_time=None if minutes is None else max(1e-9, minutes))
    if stage.end is not None:
        of_stage["trainer"] = replace(of_stage["trainer"], max_steps=stage.end - stage.begin, max_tokens=None)
    return replace(config, **of_stage)


def _figures(planned: Forecast, is_reached: bool) -> list[str]:
    """Return the cells of a stage: steps, tokens, time of a step, memory, time; as far as the clock allows."""
    cost, cells = planned.cost, ["-", "-", "-"]
    if not is_reached:
        cells[2] = "not reached by trainer.max_time"
    elif cost.steps is not None and cost.tokens is not None and cost.seconds is not None:
        cells = [f"{cost.steps:,}", f"{cost.tokens:,}", duration(cost.seconds)]
    return [*cells[:2], duration(cost.step_s), gib(planned.peak), cells[2]]


@dataclass(frozen=True)
class Measured:
    """Measurements of a finished run."""

    config: RunConfig
    parameters: int
    steps: int
    tokens: int  # read over the whole run
    speeds: list[tuple[int, float]]  # step, and tokens/s of all devices up to it; at least one
    memory_gib: float | None  # of rank 0; None if it was not logged

    def tokens_per_s(self, begin: int = 0, end: int | None = None) -> float:
        """Return the median speed of the steps after `begin` up to `end`, or of all where none of these was logged."""
        inside = [speed for step, speed in self.speeds if begin < step <= (self.steps if end is None else end)]
        return median(inside or [speed for _, speed in self.speeds])


def measured_by(folder: Path) -> Measured:
    """Read the measurements of a run; raises CheckpointError if it has not finished or logged none."""
    for name in (CONFIG, REPORT):
        if not os.path.lexists(folder / name):
            finished = newest_finished(folder)
            such_as = f"run={finished}, the newest finished one there" if finished else "run=logs/gpt_nano/<time>"
            raise CheckpointError(f"run={folder} holds no {name}: only a finished run can be compared. Try {such_as}.")
    config, report = saved_settings(folder), record_of(folder / REPORT, FinishedRun)
    logged = _logged(folder / TABLE)
    speeds = logged.get("speed/tokens_per_s", [])[1:]  # the first step warms up
    speeds = speeds or [(report.steps, report.tokens_per_s or 0.0)]
    if not (report.tokens_seen and all(0 < speed < math.inf for _, speed in speeds)):
        raise CheckpointError(
            f"run={folder} has no measured speed: it read {report.tokens_seen} tokens, at "
            f"{[speed for _, speed in speeds[:3]]} tokens/s. Try another run."
        )
    return Measured(
        config=config,
        parameters=report.parameters,
        steps=report.steps,
        tokens=report.tokens_seen,
        speeds=speeds,
        memory_gib=max((gib for _, gib in logged.get("speed/memory_gib", []) if 0 < gib < math.inf), default=None),
    )


def _logged(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Return step and value of each metric in metrics.csv, in the order of the steps; empty if the file is missing."""
    values: dict[str, list[tuple[int, float]]] = {}
    for row in read_rows(path):
        values.setdefault(row["name"], []).append((int(row["step"]), float(row["value"])))
    return values


def compare(config: PlanConfig, run: str) -> str:
    """Return a table of a finished run: its forecast on the device of `config`, its measurements, and the error.

    Raises CheckpointError if the run has not finished.
    """
    folder = Path(run)
    measured = measured_by(folder)
    settings = {f.name: getattr(measured.config, f.name) for f in fields(RunConfig)}
    vocab_size = Tokenizer.load(open_checkpoint(folder).tokenizer_folder).vocab_size
    run_settings = replace(config, run=None, vocab_size=vocab_size, **settings)
    parts = _parts(run_settings, measured)
    planned = max((part.planned for part in parts), key=lambda each: each.peak)
    expected_s, measured_s = (sum(part.tokens / part.speeds[side] for part in parts) for side in (0, 1))
    rows: list[tuple[str, float, float, Callable[[float], str]]] = [
        ("parameters", float(planned.work.parameters), float(measured.parameters), "{:,.0f}".format)
    ]
    for part in parts:
        name = f"tokens/s of {part.name}" if part.name else "tokens/s"
        rows.append((name, part.speeds[0], part.speeds[1], "{:,.0f}".format))
    rows.append(("time in steps", expected_s, measured_s, duration))
    if measured.memory_gib is not None:
        name, expected = _memory(planned)
        rows.append((name, expected, measured.memory_gib * 2**30, gib))
    width = max(len(name) for name, *_ in rows)
    lines = [
        f"{run}, as planned for {planned.target.hardware.name}",
        f"  {'':<{width}} {'forecast':>14} {'measured':>14}  error",
    ]
    for name, expected, actual, text in rows:
        lines.append(f"  {name:<{width}} {text(expected):>14} {text(actual):>14}  {expected / actual - 1:+.1%}")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Part:
    """A stage of a finished run, or a whole one without stages."""

    name: str  # "" of a run without stages
    planned: Forecast
    tokens: int
    speeds: tuple[float, float]  # tokens/s by the forecast, and measured


def _parts(config: PlanConfig, measured: Measured) -> list[_Part]:
    """Return the stages of a run that it reached, with the settings of each."""
    target = target_of(config)
    if not config.stages:
        planned = forecast(config, target, simulate=config.dry_run)
        return [_Part("", planned, measured.tokens, (planned.cost.tokens_per_s, measured.tokens_per_s()))]
    course, parts = course_of(config), list[_Part]()
    for stage in course.stages:
        end = measured.steps if stage.end is None else min(stage.end, measured.steps)
        if end > stage.begin:
            of_stage = _settings_of(config, stage, config.trainer.max_time)
            planned = forecast(of_stage, target, config.dry_run, Growth(course.sizes, stage.begin))
            tokens = course.sizes.tokens(end) - course.sizes.tokens(stage.begin)
            speeds = planned.cost.tokens_per_s, measured.tokens_per_s(stage.begin, end)
            parts.append(_Part(stage.name, planned, tokens, speeds))
    return parts


def _memory(planned: Forecast) -> tuple[str, float]:
    """Return the name of the run's memory metric, and its forecast in bytes.

    On a GPU it is the peak of its tensors, on a CPU the memory of the process between two steps, libraries included.
    """
    if planned.target.hardware.gpu:
        return "peak memory", float(planned.peak)
    memory = planned.estimate
    state = memory.weights + memory.average + memory.copies + memory.optimizer + memory.buckets + memory.gradients
    return "memory between steps", float(state + planned.target.hardware.reserved)
