"""A multirun's jobs: each in a fresh process, all of them in spite of failures, and a table at the end."""

import hashlib
import itertools
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from pretrain.config.overrides import quoted, unquoted
from pretrain.errors import CheckpointError, ConfigError, Interrupted, printable
from pretrain.launch.run_folder import SWEPT, finished_run
from pretrain.stop_signals import handled_signals


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
    def loss(self) -> float | None:
        """Validation loss at the end in nats per token; none where there is none, or it is no number."""
        found = finished_run(self.folder) if self.finished else None
        value = None if found is None else found.validation.get("val/loss")
        return None if value is None or not math.isfinite(value) else value


def sweep(words: list[str], logs_folder: Path) -> list[Job]:
    """Run every combination of the settings in `words` and print the table; jobs that have finished are not run again.

    A job's folder follows from its settings, so that typing the same sweep again does what is missing. An interrupt
    ends the job under way and the sweep.
    """
    jobs = expand(words, logs_folder)
    for number, job in enumerate(jobs, start=1):
        title = f"job {number} of {len(jobs)}: {' '.join(job.swept) or 'the only one'}"
        if job.finished:
            job.exit_code = 0
            print(printable(f"{title}: finished before, in {job.folder}", one_line=True), flush=True)
            continue
        print(printable(title, one_line=True), flush=True)
        job.exit_code = _run(job)
        if job.exit_code in (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP):
            print(printable(table(jobs)))
            raise Interrupted("the sweep was interrupted; type it again to go on", job.exit_code - 128)
    print(printable(table(jobs)))
    return jobs


def checked_sweep(words: list[str], check: Callable[[list[str]], object]) -> int:
    """Run every combination, once `check` raises for the words of none; return 0, or the first failure's exit code."""
    given = (word.partition("=")[2] for word in reversed(words) if word.lstrip("+").startswith("paths.logs_dir="))
    logs = unquoted(next(given, "logs"))
    for job in expand(words, Path(logs)):
        check(job.words)
    return next((job.exit_code for job in sweep(words, Path(logs)) if job.exit_code), 0)


def expand(words: list[str], logs_folder: Path) -> list[Job]:
    """Return a job for every combination; of `a=1,2 b=x` two. Raises ConfigError for a sweep without an end."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    choices: list[list[str]] = []
    varied: list[bool] = []
    for override in OverridesParser.create().parse_overrides(words):
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(f"{override.input_line} has no end. List the values: {override.key_or_group}=1,2,3.")
        key = override.get_key_element()
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else None
        choices.append([f"{key}={value}" for value in values] if values else [str(override.input_line)])
        varied.append(values is not None)
    jobs = []
    for combination in itertools.product(*choices):
        swept = [word for word, varies in zip(combination, varied, strict=True) if varies]
        jobs.append(Job(list(combination), swept, _folder(list(combination), swept, logs_folder)))
    return jobs


def _folder(words: list[str], swept: list[str], logs_folder: Path) -> Path:
    """Return a folder named after what is swept, and after the hash of all settings."""
    name = re.sub(
        r"[^\w.+-]+",
        "-",
        "_".join(word.partition("=")[0].rpartition(".")[2] + "-" + word.partition("=")[2] for word in swept),
    )[:60].strip("-_")
    digest = hashlib.sha256(" ".join(sorted(words)).encode()).hexdigest()[:8]
    return logs_folder / "sweep" / f"{name or 'job'}-{digest}"


def _run(job: Job) -> int:
    """Run a job in a process of its own and return its exit code; signals go on to it."""
    words = [*job.words, f"paths.run_dir={quoted(str(job.folder))}"]
    if any(job.folder.glob("checkpoints/step-*")):  # of a sweep that was interrupted
        words.append("resume=auto")
    command = [sys.executable, sys.argv[0], *words]
    swept = ",".join(word.partition("=")[0].lstrip("+") for word in job.swept)
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in handled_signals()}  # first: no job is left behind
    try:
        process = subprocess.Popen(command, env=os.environ | {SWEPT: swept})
        for number in early:
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def table(jobs: list[Job]) -> str:
    """Return settings, validation loss, exit code and folder of each job, the best one marked."""
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
    return "\n".join(["", *lines])
