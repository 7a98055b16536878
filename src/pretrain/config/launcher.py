"""`hydra/launcher=pretrain`, the default: each job of a sweep in a fresh process of its own, in spite of failures.

A job's folder follows from its settings, so that typing the same sweep again does what is missing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from pretrain.config.hydra_job import HydraJob, without_hydras_line
from pretrain.config.listed_sweeper import ListedSettings, ListedSweeper
from pretrain.config.pruning_sweeper import PruningSettings, PruningSweeper
from pretrain.config.sweep import Job, JobError, job_of
from pretrain.errors import ConfigError, DivergenceError, Interrupted, show
from pretrain.launch.run_folder import SWEPT, opened_to_append
from pretrain.stop_signals import AskedToStop, handled_signals

OUTPUT = "output.log"  # of a job that runs beside others
_POLL_S = 0.1


class FreshProcessLauncher(Launcher):
    """Starts the script once for each job, `n_jobs` at a time; an interrupt ends the jobs under way and the sweep."""

    __module__ = "hydra_plugins.pretrain"  # Hydra instantiates launchers of this package only

    def __init__(self, n_jobs: int = 1) -> None:
        if n_jobs < 1:
            raise ConfigError(f"hydra.launcher.n_jobs={n_jobs} is below 1. Try hydra.launcher.n_jobs=2.")
        self.n_jobs = n_jobs
        self.hydra_job: HydraJob

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Keep what starts the jobs: `task_function` is the HydraJob that `main` made."""
        self.hydra_job = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run the jobs and return the validation loss of each, or its failure; finished ones are not run again."""
        jobs = [job_of(list(words), self.hydra_job.swept, self.hydra_job.logs_folder) for words in job_overrides]
        self.hydra_job.jobs.extend(jobs)
        waiting = [job for number, job in enumerate(jobs, initial_job_idx + 1) if not _is_done(job, number)]
        running: dict[subprocess.Popen[bytes], Job] = {}
        with signals_passed_on(running) as received:
            while running or (waiting and not received):
                while waiting and not received and len(running) < self.n_jobs:
                    job = waiting.pop(0)
                    process = self._start(job)
                    running[process] = job
                    for number in received:  # while the process was being started
                        process.send_signal(number)
                for process in [process for process in running if process.poll() is not None]:
                    job = running.pop(process)
                    job.exit_code = 128 - process.returncode if process.returncode < 0 else process.returncode
                    if job.exit_code in (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP):
                        _end(running)
                        raise _interrupted(job.exit_code)
                time.sleep(_POLL_S if running else 0)
        if received:  # as the last job ended: a sweeper must not hand over the next ones
            raise _interrupted(AskedToStop(received[0]).exit_code)
        return [_returned(job) for job in jobs]

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        environment = os.environ | {SWEPT: job.swept_names()}
        command = [*self.hydra_job.program, *job.run_words(), "hydra.mode=RUN"]  # also where one's own config sweeps
        if self.n_jobs == 1:
            return subprocess.Popen(command, env=environment)
        threads = str(max(1, (os.cpu_count() or 1) // self.n_jobs))
        environment = {"OMP_NUM_THREADS": threads} | environment
        job.folder.mkdir(parents=True, exist_ok=True)
        with opened_to_append(job.folder / OUTPUT) as file:
            return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def _interrupted(exit_code: int) -> Interrupted:
    return Interrupted("the sweep was interrupted; type it again to go on", exit_code - 128)


def _is_done(job: Job, number: int) -> bool:
    """Whether a job has finished before; prints its title."""
    title = f"job {number}: {' '.join(job.swept) or 'the only one'}"
    if job.diverged:
        job.exit_code = DivergenceError.exit_code
        title += f": diverged before, in {job.folder}; delete the folder to train it again"
    elif job.finished:
        job.exit_code = 0
        title += f": finished before, in {job.folder}"
    show(title, one_line=True)
    return job.finished


def _returned(job: Job) -> JobReturn:
    result = JobReturn()
    result.overrides, result.working_dir = job.words, str(Path.cwd())
    result.status, result.return_value = JobStatus.COMPLETED, job.loss
    if job.exit_code:
        result.status = JobStatus.FAILED
        words = " ".join(job.swept) or "the only job"
        result.return_value = JobError(f"{words} ended with exit code {job.exit_code}.", job.exit_code)
        without_hydras_line()
    return result


def _end(running: dict[subprocess.Popen[bytes], Job]) -> None:
    """End the jobs under way as an interrupt would, and note how they ended."""
    for process in running:
        process.terminate()
    for process, job in running.items():
        code = process.wait()
        job.exit_code = 128 - code if code < 0 else code


@contextmanager
def signals_passed_on(running: Iterable[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass signals that ask to stop on to the processes `running` by then; yield the list of those received."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in list(running):
            process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in handled_signals()}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def register_plugins() -> None:
    """Make our launcher and sweeper known to Hydra; before `@hydra.main`."""
    Plugins.instance().register(FreshProcessLauncher)  # looks for the plug-ins that are installed first
    sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))  # there is one only where one is installed
    sys.modules["hydra_plugins"].pretrain = sys.modules[__name__]  # type: ignore[attr-defined]
    sys.modules["hydra_plugins.pretrain"] = sys.modules[__name__]
    Plugins.instance().register(PruningSweeper)
    Plugins.instance().register(ListedSweeper)
    ConfigStore.instance().store(group="hydra/sweeper", name="listed", node=ListedSettings, provider="pretrain")
    ConfigStore.instance().store(
        group="hydra/sweeper", name="optuna_pruning", node=PruningSettings, provider="pretrain"
    )
