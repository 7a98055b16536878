"""The jobs of a sweep: their combinations, their folders, what came of them, and the table at the end."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pretrain.config.command_line import is_hydras
from pretrain.config.overrides import parsed, quoted
from pretrain.errors import CheckpointError, ConfigError, DivergenceError, PretrainError, show
from pretrain.launch.run_folder import PAGE, finished_run

SWEEP = "sweep"  # folder of a sweep's jobs in paths.logs_dir


class JobError(PretrainError):
    """A job of a sweep has ended with an error."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[JobError], tuple[str, int]]:
        return JobError, (str(self), self.exit_code)


@dataclass
class Job:
    """One combination of the swept settings."""

    words: list[str]  # all settings of the job, as typed
    swept: list[str]  # those of them that differ between jobs
    folder: Path
    exit_code: int | None = None  # none: not run

    @property
    def finished(self) -> bool:
        """Whether the job has left its report; a damaged one is made again."""
        try:
            return finished_run(self.folder) is not None
        except CheckpointError:
            return False

    @property
    def diverged(self) -> bool:
        """Whether the job has ended with a validation loss that is no number."""
        found = finished_run(self.folder) if self.finished else None
        return found is not None and found.has_diverged("val/loss")

    def raise_if_diverged(self) -> None:
        """Raise DivergenceError if the job has ended so before, as that is no success when a sweep is typed again."""
        if self.diverged:
            raise DivergenceError(
                f"{' '.join(self.swept) or 'the only job'} diverged before, in {self.folder}; delete the folder to "
                "train it again."
            )

    @property
    def loss(self) -> float | None:
        """Validation loss at the end in nats per token; none where there is none, or it is no number."""
        found = finished_run(self.folder) if self.finished else None
        value = None if found is None else found.validation.get("val/loss")
        return None if value is None or not math.isfinite(value) else value

    def swept_names(self) -> str:
        """Return the names of the settings that differ between jobs, by commas, for the variable SWEPT."""
        return ",".join(word.partition("=")[0].lstrip("+") for word in self.swept)

    def run_words(self) -> list[str]:
        """Return the overrides that run the job in its folder, from its last checkpoint where it has one."""
        words = [*self.words, f"paths.run_dir={quoted(str(self.folder))}"]
        if any(self.folder.glob("checkpoints/step-*")):  # of a sweep that was interrupted
            words.append("resume=auto")
        return words


def job_of(words: list[str], swept: tuple[str, ...], logs_folder: Path) -> Job:
    """Return the job of these settings; its folder follows from them, so that the same job finds it again.

    `swept` are the keys of the settings that differ between jobs.
    """
    differ = [word.lstrip("+") for word in words if word.partition("=")[0] in swept]
    name = re.sub(
        r"[^\w.+-]+",
        "-",
        "_".join(word.partition("=")[0].rpartition(".")[2] + "-" + word.partition("=")[2] for word in differ),
    )[:60].strip("-_")
    digest = hashlib.sha256(" ".join(sorted(words)).encode()).hexdigest()[:8]
    return Job(words, differ, logs_folder / SWEEP / f"{name or 'job'}-{digest}")


def swept_keys(words: list[str]) -> tuple[str, ...]:
    """Return the keys of those overrides in Hydra's grammar that have several values."""
    return tuple(override.get_key_element() for override in parsed(words) if override.is_sweep_override())


def combinations(words: list[str]) -> Iterator[list[str]]:
    """Yield the overrides of each job: of `a=1,2 b=x` two. Raises ConfigError for a sweep without an end."""
    choices: list[list[str]] = []
    for override in parsed(words):
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(f"{override.input_line} has no end. List the values: {override.key_or_group}=1,2,3.")
        key = override.get_key_element()
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else None
        choices.append([f"{key}={value}" for value in values] if values else [str(override.input_line)])
    for combination in itertools.product(*choices):
        yield list(combination)


def of_the_job(words: list[str]) -> list[str]:
    """Return overrides without those of Hydra's own settings."""
    return [word for word in words if not is_hydras(word)]


def leave_report(jobs: list[Job], deadline_s: float) -> None:
    """Write report.html into the folder of a sweep, if that takes no longer; what goes wrong is a line of warning."""
    from pretrain.reports.sweep import SWEEP_RECORD, SweptJob, write_record  # here: other commands need none of it
    from pretrain.reports.write import write_outside

    folder = jobs[0].folder.parent
    swept = {job.folder.name: SweptJob(job.folder.name, job.swept, job.exit_code) for job in jobs}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder, list(swept.values()))
    except OSError as error:
        show(f"warning: {folder / SWEEP_RECORD} was not written: {error.strerror}", one_line=True)
        return
    problem = write_outside(folder, deadline_s)
    show(f"warning: no report: {problem}" if problem else f"report: {folder / PAGE}", one_line=True)


def show_table(jobs: list[Job]) -> None:
    """Print settings, validation loss, exit code and folder of each job, the best one marked."""
    losses = [job.loss for job in jobs if job.loss is not None]
    best = min(losses, default=None)
    rows = [("", "settings", "val/loss", "exit", "folder")]
    for job in jobs:
        loss = job.loss
        rows.append(
            (
                "*" if loss is not None and loss == best else "",
                " ".join(job.swept),
                "" if loss is None else f"{loss:.4f}",
                "-" if job.exit_code is None else str(job.exit_code),
                str(job.folder),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    show("\n".join(["", *lines]))
