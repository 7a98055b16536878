"""Stages as tasks of Ray (https://docs.ray.io), one for each task that is not done.

No data goes through Ray: tasks read and write the stage's folder, on storage that all machines see.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.data.curation.clusters.array_task import error_of, error_record, task_function
from pretrain.data.curation.clusters.config import EngineConfig
from pretrain.data.curation.engine import Stage, prepare_stage, run_task
from pretrain.errors import ConfigError, RankLostError, printable

_STORE_BYTES = 80_000_000  # of shared memory, the least that Ray takes: nothing is kept there


class RayTasks:
    """Runs the tasks of one stage after another on a Ray cluster; as a context manager it leaves or ends it."""

    def __init__(self, config: EngineConfig, workers: int) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(
                "engine=ray needs the package ray, which is not installed. Install it: "
                "pip install -e '.[curate-cluster]', or try engine=local."
            )
        self.config, self.workers = config, workers
        self._ray: Any = None

    def __enter__(self) -> RayTasks:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        own: dict[str, Any] = {
            "num_cpus": self.workers, "object_store_memory": _STORE_BYTES, "include_dashboard": False
        }  # fmt: skip
        address = self.config.address
        try:
            ray.init(address or "local", logging_level="ERROR", log_to_driver=False, **({} if address else own))
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            reason = printable(" ".join(str(error).split()), one_line=True)[:300]
            raise ConfigError(
                f"engine.address={printable(str(self.config.address))}: Ray does not start or answer: {reason}. "
                "Try engine.address=null, which starts it on this machine."
            ) from error
        self._ray = ray
        return self

    def __exit__(self, *error: object) -> None:
        if self._ray is not None:
            self._ray.shutdown()

    def run_stage(self, work: Path, stage: Stage, report: Callable[[int, int], object]) -> Path:
        """Run the tasks that are not done yet; return the stage's folder. As `Workers.run_stage`."""
        assert task_function(stage.name) is stage.function, stage.name
        folder = work / stage.folder
        waiting = prepare_stage(work, stage)
        report(stage.tasks - len(waiting), stage.tasks)
        remote = self._ray.remote(num_cpus=1, max_retries=2)(run_one)
        pending = [remote.remote(str(folder.resolve()), stage.name, index) for index in waiting]
        while pending:
            finished, pending = self._ray.wait(pending, num_returns=1)
            try:
                failures = [failure for failure in self._ray.get(finished) if failure is not None]
            except self._ray.exceptions.RayError as error:
                reason = printable(" ".join(str(error).split()), one_line=True)[:300]
                raise RankLostError(
                    f"a task of the stage {stage.name} was lost by Ray: {reason}. Give the command again: it goes on "
                    "where it was."
                ) from error
            if failures:
                raise error_of(failures[0])
            report(stage.tasks - len(pending), stage.tasks)
        return folder


def run_one(folder: str, stage: str, index: int) -> dict[str, str] | None:
    """Run one task of a stage; return its error as plain JSON, None without one."""
    try:
        run_task(task_function(stage), Path(folder), index)
    except Exception as error:
        return error_record(error)
    return None
