"""Processes that run the tasks of stages: they are replaced after some tasks, and no task waits for ever."""

import os
from pathlib import Path

import pytest

from pretrain.data.curation import engine
from pretrain.data.curation.engine import Counts, Stage, Task, Workers, counts_of


def name_process(task: Task) -> Counts:
    """Return the process that runs a task."""
    return {"process": os.getpid()}


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
