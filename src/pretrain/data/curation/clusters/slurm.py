"""Stages as Slurm array jobs (https://slurm.schedmd.com/sbatch.html), submitted one after another.

The process that curates goes on where nothing runs long: a login node, or a small job of its own. A stage's array has
`engine.tasks` tasks or fewer, whatever the number of units is, so that no limit of the cluster is met. Which tasks are
done is in the stage's folder alone, on storage that all machines see; the corpus does not depend on the array.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pretrain
from pretrain.data.curation.clusters.array_task import read_errors, task_function
from pretrain.data.curation.clusters.config import EngineConfig
from pretrain.data.curation.engine import Stage, done_record, prepare_stage, storage_errors
from pretrain.errors import ConfigError, RankLostError, printable
from pretrain.files.atomic_files import write_atomically

POLL_S = 2.0  # between looks at the files of a stage
QUEUE_S = 30.0  # between questions to Slurm whether the job still is
GRACE_S = 90.0  # for files that another machine wrote to be seen here, after the job has ended
_COMMAND_S = 120.0  # for an answer of Slurm
JOB = "job"  # file of a stage that is not done: the number of its job


class SlurmArrays:
    """Runs the tasks of one stage after another as array jobs; as a context manager it cancels what is left."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._job: str | None = None  # the one that runs

    def __enter__(self) -> SlurmArrays:
        return self

    def __exit__(self, *error: object) -> None:
        if self._job is not None:
            _answer("scancel", self._job)

    def run_stage(self, work: Path, stage: Stage, report: Callable[[int, int], object]) -> Path:
        """Run the tasks that are not done yet; return the stage's folder. As `Workers.run_stage`."""
        assert task_function(stage.name) is stage.function, stage.name
        folder = work / stage.folder
        if (folder / JOB).exists():  # of a start that was killed: it would work beside this one's
            _answer("scancel", (folder / JOB).read_text()[:20])
        waiting = prepare_stage(work, stage)
        report(stage.tasks - len(waiting), stage.tasks)
        if waiting:
            self._job = self._submit(work, stage, min(len(waiting), self.config.tasks))
            self._wait(folder, stage, waiting, report)
            self._job = None
            (folder / JOB).unlink()
        return folder

    def _submit(self, work: Path, stage: Stage, count: int) -> str:
        folder, logs = work / stage.folder, work / "slurm"
        with storage_errors(work):
            logs.mkdir(exist_ok=True)
            script = logs / f"{stage.name}.sh"
            write_atomically(script, _script(folder.resolve(), stage.name, count).encode())
        found = _answer(
            "sbatch", "--parsable", f"--job-name=curate-{stage.name}", f"--array=0-{count - 1}",
            f"--output={logs.resolve()}/{stage.name}-%A_%a.log", *self.config.options, str(script),
        )  # fmt: skip
        job = found.stdout.strip().partition(";")[0]
        if found.returncode or not job.isdigit():
            raise ConfigError(
                f"engine=slurm: sbatch refused the job of the stage {stage.name}: {_said(found)}. Name what this "
                "cluster needs in engine.options, such as [--partition=cpu,--time=04:00:00]."
            )
        write_atomically(folder / JOB, job.encode())
        return job

    def _wait(self, folder: Path, stage: Stage, waiting: list[int], report: Callable[[int, int], object]) -> None:
        """Wait until all tasks are done; raise the error of the first one that failed."""
        assert self._job is not None
        asked = time.monotonic()
        ended: float | None = None
        while True:
            waiting = [index for index in waiting if done_record(folder, index) is None]
            report(stage.tasks - len(waiting), stage.tasks)
            if not waiting:
                return
            if errors := read_errors(folder, self._job):
                raise errors[0]
            now = time.monotonic()
            if ended is None and now - asked >= QUEUE_S:
                asked = now
                ended = now if _has_ended(self._job) else None
            if ended is not None and now - ended >= GRACE_S:
                raise RankLostError(
                    f"the Slurm job {self._job} of the stage {stage.name} ended and left {len(waiting):,} of "
                    f"{stage.tasks:,} tasks, perhaps because memory or time ended: see {folder.parent / 'slurm'} and "
                    f"sacct -j {self._job}. Give the command again: it goes on where it was; more of both: "
                    "engine.options=[--mem=8G,--time=08:00:00]."
                )
            time.sleep(POLL_S)


def _script(folder: Path, stage: str, count: int) -> str:
    source = str(Path(pretrain.__file__).parents[1])
    paths = os.pathsep.join(dict.fromkeys([source, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))
    words = [sys.executable, "-m", "pretrain.data.curation.clusters.array_task", str(folder), stage]
    return (
        "#!/bin/sh\n"
        f"export PYTHONPATH={shlex.quote(paths)} OMP_NUM_THREADS=1\n"
        f'exec {shlex.join(words)} "$SLURM_ARRAY_TASK_ID" {count}\n'
    )


def _has_ended(job: str) -> bool:
    """Return whether Slurm no longer has the job; a controller that does not answer is asked again later."""
    found = _answer("squeue", "--noheader", f"--jobs={job}")
    if found.returncode:
        return "Invalid job id" in found.stderr
    return not found.stdout.strip()


def _answer(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=_COMMAND_S)
    except FileNotFoundError:
        raise ConfigError(
            f"engine=slurm needs the command {words[0]}, which is not on this machine. Give the command where jobs are "
            "submitted, or try engine=local."
        ) from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", f"no answer in {_COMMAND_S:.0f} s")


def _said(found: subprocess.CompletedProcess[str]) -> str:
    return printable(" ".join((found.stderr or found.stdout).split()), one_line=True)[:500] or "it printed nothing"
