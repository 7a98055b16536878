"""Processes that run the tasks of stages: they are replaced after some tasks, and no task waits for ever."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.data.curation import engine
from pretrain.data.curation.engine import Counts, Stage, Task, Workers, counts_of
from pretrain.errors import CheckpointError, RankLostError


def name_process(task: Task) -> Counts:
    """Return the process that runs a task."""
    return {"process": os.getpid()}


def kill_process(task: Task) -> Counts:
    """End the process that runs a task, as the system does where memory ends."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


@pytest.mark.slow
def test_processes_are_replaced_and_every_task_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "TASKS_OF_A_PROCESS", 2)
    reported: list[int] = []
    with Workers(2) as workers:
        for name, tasks in (("first", 5), ("second", 4)):
            stage = Stage(name, name_process, tasks, 1, {}, {})
            folder = workers.run_stage(tmp_path, stage, lambda done, of: reported.append(done))
            assert len(counts_of(folder)) == tasks
    found = {each["process"] for name in ("first", "second") for path in tmp_path.glob(f"{name}-*")
             for each in counts_of(path)}  # fmt: skip
    assert os.getpid() not in found
    assert len(found) >= 3  # two processes at most do four tasks
    assert (5 in reported, reported[-1]) == (True, 4)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_stage_with_what_to_do(tmp_path: Path) -> None:
    message = r"a process of the stage read died, .* Give the command again: it goes on .* less memory: workers=1\."
    with Workers(2) as workers, pytest.raises(RankLostError, match=message):
        workers.run_stage(tmp_path, Stage("read", kill_process, 3, 1, {}, {}), lambda done, of: None)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{}")])
def test_a_task_whose_record_is_gone_is_named(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    with Workers(1) as workers:
        folder = workers.run_stage(tmp_path, Stage("read", name_process, 3, 1, {}, {}), lambda done, of: None)
    assert len(counts_of(folder)) == 3
    (path,) = folder.glob("*2.done")
    damage(path)
    with pytest.raises(CheckpointError, match=r"2\.done is missing or damaged\. Give the command again: it goes on\."):
        counts_of(folder)
