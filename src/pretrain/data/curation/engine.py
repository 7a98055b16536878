"""Stages of tasks over files: any task may be killed at any time and run again, anywhere, with the same result.

work/<stage>-<key>/plan.json           settings, inputs and number of tasks of the stage
work/<stage>-<key>/00012.<name>        what task 12 wrote
work/<stage>-<key>/00012.done          size and sha256 of it, and its counts: written last, so the task is complete

The key is a hash of the stage's version, its settings and the keys of the stages that it reads: with another setting
the stage has another folder, and what was made with the old one is found again when that comes back.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import xxhash

from pretrain.errors import CheckpointError, RankLostError
from pretrain.files.atomic_files import sync_to_disk, write_atomically
from pretrain.files.records import sha256_of
from pretrain.files.untrusted_files import read_json
from pretrain.kernels.malloc import return_freed_memory
from pretrain.stop_signals import keep_from_children

TASKS_OF_A_PROCESS = 64  # about; then it is replaced, so that no library's memory grows over a long run
Counts = dict[str, Any]  # plain JSON
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


@dataclass(frozen=True)
class Stage:
    """Tasks of one kind; `function` writes what one of them makes."""

    name: str
    function: Callable[[Task], Counts]
    tasks: int
    version: int
    settings: dict[str, Any]  # plain JSON; all that decides the result, besides the inputs
    inputs: dict[str, str]  # folders in work/ of the stages that it reads, by the name under which the task reads them

    @property
    def folder(self) -> str:
        """Name of the stage's folder in work/."""
        parts = [self.name, self.version, self.tasks, self.settings, sorted(self.inputs.items())]
        key = xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())
        return f"{self.name}-{key[:20]}"


class Task:
    """One task of a stage: where it reads and writes, by index."""

    def __init__(self, folder: Path, index: int) -> None:
        plan = read_json(folder / "plan.json", 1 << 30)
        self.folder, self.index, self.tasks = folder, index, int(plan["tasks"])
        self.settings: dict[str, Any] = plan["settings"]
        self._inputs: dict[str, str] = plan["inputs"]
        self._drafts: dict[str, Path] = {}

    def input(self, stage: str, name: str, index: int | None = None) -> Path:
        """Return a file that a task of an earlier stage wrote: by default that of the same index."""
        return file_of(self.input_folder(stage), self.index if index is None else index, name)

    def inputs(self, stage: str, name: str) -> list[Path]:
        """Return that file of all tasks of an earlier stage, in order."""
        folder = self.input_folder(stage)
        return [file_of(folder, index, name) for index in range(number_of_tasks(folder))]

    def optional_inputs(self, stage: str, name: str) -> list[Path]:
        """Return that file of all tasks of an earlier stage; none if this stage does not read that one."""
        return self.inputs(stage, name) if stage in self._inputs else []

    def reads(self, stage: str) -> bool:
        """Return whether this stage reads an earlier one."""
        return stage in self._inputs

    def input_folder(self, stage: str) -> Path:
        """Return the folder of an earlier stage."""
        return self.folder.parent / self._inputs[stage]

    def output(self, name: str) -> Path:
        """Return the path to write a file at; it gets its name as the task ends."""
        draft = self.folder / f".{self.index:05d}.{name}.{socket.gethostname()}-{os.getpid()}.tmp"
        self._drafts[name] = draft
        return draft

    def finish(self, counts: Counts) -> None:
        """Give the files their names, and mark the task as done."""
        files = {}
        for name, draft in self._drafts.items():
            files[name] = {"bytes": draft.stat().st_size, "sha256": sha256_of(draft)}
            sync_to_disk(draft)
            draft.replace(file_of(self.folder, self.index, name))
        sync_to_disk(self.folder)
        record = {"files": files, "counts": counts}
        write_atomically(_done(self.folder, self.index), json.dumps(record, sort_keys=True).encode())

    def discard(self) -> None:
        """Delete what an unfinished task wrote."""
        for draft in self._drafts.values():
            draft.unlink(missing_ok=True)


def file_of(folder: Path, index: int, name: str) -> Path:
    """Return a file of a finished task."""
    return folder / f"{index:05d}.{name}"


def link(source: Path, target: Path) -> None:
    """Give a file of work/ a second name, or copy it where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def number_of_tasks(folder: Path) -> int:
    """Return how many tasks a stage has."""
    return int(read_json(folder / "plan.json", 1 << 30)["tasks"])


def done_record(folder: Path, index: int) -> dict[str, Any] | None:
    """Return files and counts of a task; None if it is not done or its files are no longer as it left them."""
    try:
        record: dict[str, Any] = read_json(_done(folder, index), 1 << 28)
        for name, written in record["files"].items():
            if file_of(folder, index, name).stat().st_size != written["bytes"]:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record


def counts_of(folder: Path) -> list[Counts]:
    """Return the counts of every task of a finished stage, in order."""
    found = []
    for index in range(number_of_tasks(folder)):
        record = done_record(folder, index)
        if record is None:
            raise CheckpointError(f"{_done(folder, index)} is missing or damaged. Give the command again: it goes on.")
        found.append(record["counts"])
    return found


class Engine(Protocol):
    """Runs stages, one after another; a context manager."""

    def run_stage(self, work: Path, stage: Stage, report: Callable[[int, int], object]) -> Path:
        """Run the tasks that are not done yet; return the stage's folder.

        `report` takes the tasks done and all of them. Raises the error of a task that fails.
        """


def prepare_stage(work: Path, stage: Stage) -> list[int]:
    """Make the folder of a stage and write its plan; return the tasks that are not done yet."""
    folder = work / stage.folder
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        plan = {"tasks": stage.tasks, "settings": stage.settings, "inputs": stage.inputs}
        write_atomically(folder / "plan.json", json.dumps(plan, sort_keys=True).encode())
        for draft in folder.glob(".*.tmp"):
            draft.unlink(missing_ok=True)
    return [index for index in range(stage.tasks) if done_record(folder, index) is None]


class Workers:
    """Processes that run the tasks of one stage after another; as a context manager it ends them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._executor: ProcessPoolExecutor | None = None
        self._tasks_left = 0  # until its processes are replaced

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            for process in list((self._executor._processes or {}).values()):
                process.kill()  # between two tasks nothing is lost, and within one it would not be used
            self._executor.shutdown(wait=True, cancel_futures=True)

    def run_stage(self, work: Path, stage: Stage, report: Callable[[int, int], object]) -> Path:
        """Run the tasks that are not done yet; return the stage's folder.

        `report` takes the tasks done and all of them. Raises the error of the first task that fails.
        """
        folder, waiting = work / stage.folder, prepare_stage(work, stage)
        report(stage.tasks - len(waiting), stage.tasks)
        if self.count == 1 or len(waiting) < 2:
            for number, index in enumerate(waiting, start=1):
                run_task(stage.function, folder, index)
                report(stage.tasks - len(waiting) + number, stage.tasks)
        else:
            self._run(stage, folder, waiting, report)
        return folder

    def _run(self, stage: Stage, folder: Path, waiting: list[int], report: Callable[[int, int], object]) -> None:
        one = functools.partial(run_task, stage.function, folder)
        done, given = stage.tasks - len(waiting), 0
        try:
            while given < len(waiting):
                executor = self._ready_executor()
                batch = waiting[given : given + self._tasks_left]
                given, self._tasks_left = given + len(batch), self._tasks_left - len(batch)
                pending: set[Future[None]] = {executor.submit(one, index) for index in batch}
                while pending:
                    finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in finished:
                        future.result()
                        done += 1
                    report(done, stage.tasks)
        except BrokenProcessPool as error:
            raise RankLostError(
                f"a process of the stage {stage.name} died, killed by the system, perhaps because memory ended. Give "
                "the command again: it goes on where it was; fewer processes take less memory: workers=1."
            ) from error

    def _ready_executor(self) -> ProcessPoolExecutor:
        """Return processes that may take tasks: other ones where these have done their number.

        `max_tasks_per_child` of the executor would wait forever: where one process ends while another one is idle, no
        new one is started (https://github.com/python/cpython/issues/115634).
        """
        if self._executor is not None and not self._tasks_left:
            self._executor.shutdown(wait=True)
            self._executor = None
        if self._executor is None:
            self._executor, self._tasks_left = _started(self.count), self.count * TASKS_OF_A_PROCESS
        return self._executor


def run_task(function: Callable[[Task], Counts], folder: Path, index: int) -> None:
    """Run one task; the state is in its folder alone, so that any process of any machine may do it."""
    with storage_errors(folder):
        task = Task(folder, index)
        try:
            task.finish(function(task))
        finally:
            task.discard()
            _free_memory()


def _free_memory() -> None:
    """Give freed memory back, so that a process needs what its largest task needs, however many it has done."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    return_freed_memory()


class storage_errors:  # noqa: N801  (a context manager, used like a function)
    """Raise CheckpointError that names the folder if its storage cannot be written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError) and error.errno in _STORAGE:
            raise CheckpointError(
                f"{self.folder} cannot be written to: {os.strerror(error.errno)}. Free some space or make it writable, "
                "and give the command again: it goes on where it was."
            ) from error


def _started(count: int) -> ProcessPoolExecutor:
    keep_from_children()
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, context, initializer=end_with_parent, initargs=(os.getpid(),))


def end_with_parent(parent: int) -> None:
    """Have the system end this process when its parent has ended, however that came."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _done(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.done"
