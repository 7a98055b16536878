"""`hydra/sweeper=listed`: the jobs of a list, each with settings of its own, and no combinations of values."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

from pretrain.config.hydra_job import HydraJob
from pretrain.config.sweep import job_of
from pretrain.errors import ConfigError
from pretrain.files.atomic_files import write_atomically


@dataclass
class ListedSettings:
    """Settings below hydra.sweeper."""

    _target_: str = "hydra_plugins.pretrain.ListedSweeper"
    jobs: list[str] = field(default_factory=list)  # the settings of each job, with spaces between them
    folders: str | None = None  # a file to write the folder of each job to, as a list in JSON
    params: dict[str, Any] = field(default_factory=dict)  # of every sweeper


class ListedSweeper(Sweeper):
    """Hands all jobs of the list to the launcher at once."""

    __module__ = "hydra_plugins.pretrain"  # Hydra instantiates sweepers of this package only

    def __init__(self, **settings: Any) -> None:
        self.settings = ListedSettings(**settings)
        if not self.settings.jobs:
            raise ConfigError("hydra.sweeper.jobs is empty. Try hydra.sweeper.jobs=['model.d_model=64','seed=1'].")
        self.launcher: Launcher
        self.hydra_job: HydraJob

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Keep the launcher and the HydraJob that `main` made."""
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.hydra_job = task_function

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs; raises the error of the first that failed, after all of them."""
        jobs = [job.split() for job in self.settings.jobs]
        self.hydra_job.swept = tuple(dict.fromkeys(word.partition("=")[0] for job in jobs for word in job))
        words = [[*arguments, *job] for job in jobs]
        if self.settings.folders is not None:
            found = [str(job_of(job, self.hydra_job.swept, self.hydra_job.logs_folder).folder) for job in words]
            write_atomically(Path(self.settings.folders), json.dumps(found).encode())
        for result in self.launcher.launch(words, initial_job_idx=0):
            _ = result.return_value  # raises the job's error
