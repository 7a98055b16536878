"""What Hydra calls for each run: the task of a script with typed settings, and its validation loss for a sweeper.

Under a launcher that is not ours (joblib, submitit, ray) several jobs run in one process, one after the other.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.config.compose import compose, register_schemas, typed_run
from pretrain.config.imported import IMPORTED
from pretrain.config.preset_folders import named_plugins, own_words, use_configs
from pretrain.config.preset_reader import read_presets_for
from pretrain.config.registry import load_plugins
from pretrain.config.sweep import Job, job_of, of_the_job
from pretrain.errors import ConfigError, PretrainError
from pretrain.files.atomic_files import write_atomically
from pretrain.launch.run_folder import SWEPT
from pretrain.process_state import process_restored

Task = Callable[[Any, list[str]], object]


@dataclass
class HydraJob:
    """A script's task as Hydra's task function; sent to other processes by some launchers."""

    config_name: str
    config_class: type
    task: Task
    words: list[str]  # as typed, without those of Hydra's own
    program: list[str]  # what starts the script again, with flags such as --config-dir
    config_dir: str | None = None  # of the user's own configs
    swept: tuple[str, ...] = ()  # keys of the settings that differ between jobs
    logs_folder: Path = Path("logs")
    records: Path | None = None  # folder for what came of jobs that run elsewhere
    jobs: list[Job] = field(default_factory=list)  # of a sweep, those launched so far

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Prepare another process, in which Hydra composes a job's settings as well."""
        self.__dict__.update(state)
        use_configs(self.config_dir, self.config_name)
        load_plugins(named_plugins(own_words(self.config_name, self.words)))
        register_schemas(self.config_name, self.config_class)
        read_presets_for(self.config_class)

    def __call__(self, tree: Any) -> float | None:
        """Run the task with the settings that Hydra composed; return the validation loss at the end, if it has one."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra = HydraConfig.get()
        if hydra.mode is RunMode.RUN:
            try:
                return _number(self.task(typed_run(self.config_name, tree, self.words), self.words))
            except Exception:
                without_hydras_line()
                raise
        job = job_of(of_the_job(list(hydra.overrides.task)), self.swept, self.logs_folder)
        try:
            job.raise_if_diverged()
            loss = job.loss if job.finished else self._run(tree, job)
        except BaseException as error:
            job.exit_code = error.exit_code if isinstance(error, PretrainError) else 1
            raise
        else:
            job.exit_code = 0
        finally:
            self._record(job)
        if loss is None and hydra.runtime.choices.get("hydra/sweeper") not in ("basic", "listed"):
            raise ConfigError(
                f"{' '.join(job.swept)} has no validation loss for the sweeper to compare jobs by. Try a larger "
                "data.validation_fraction."
            )
        return loss

    def _run(self, tree: Any, job: Job) -> float | None:
        """Run a job in this process and leave the process as it was."""
        from hydra.core.hydra_config import HydraConfig

        words = job.run_words()
        if HydraConfig.get().runtime.choices.get("model") == IMPORTED:  # its shape is that of another model
            config = compose(self.config_name, words)
        else:
            if "run_dir" in tree.get("paths", {}):
                tree.paths.run_dir = str(job.folder)
            if words[-1] == "resume=auto":
                tree.resume = "auto"
            config = typed_run(self.config_name, tree, words)
        with process_restored():
            os.environ[SWEPT] = job.swept_names()
            return _number(self.task(config, words))

    def _record(self, job: Job) -> None:
        """Write down what came of a job, for the table that the sweep's own process prints."""
        if self.records is not None and self.records.is_dir():
            record = {"words": job.words, "swept": job.swept, "folder": str(job.folder), "exit_code": job.exit_code}
            write_atomically(self.records / f"{job.folder.name}.json", json.dumps(record).encode())

    def recorded(self) -> list[Job]:
        """Return the jobs of the sweep: those of our launcher, then what jobs elsewhere have written down."""
        found = [json.loads(path.read_text()) for path in sorted(self.records.glob("*.json"))] if self.records else []
        return [*self.jobs, *(Job(**each | {"folder": Path(each["folder"])}) for each in found)]


class _WithoutHydrasLine:
    """Standard error but for the next line in which Hydra repeats the overrides of a failed job."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, or leave it out once if it is that line."""
        if text.startswith("Error executing job with overrides"):
            sys.stderr = self._stream
            return len(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def without_hydras_line() -> None:
    """Leave out what Hydra prints as it hands on the error of a job: the script prints the error in one line."""
    if not isinstance(sys.stderr, _WithoutHydrasLine):
        sys.stderr = _WithoutHydrasLine(sys.stderr)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
