"""Weights & Biases, MLflow and Comet: Lightning's loggers, with the settings, samples and checkpoint of a run.

Each library reads its key and its address from its own environment; none of them is a setting. Libraries' collectors of
source code and console output are off.
"""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CometLogger, MLFlowLogger, WandbLogger

from pretrain.training.logger_config import CometConfig, MLflowConfig, RunFacts, WandbConfig
from pretrain.training.loggers.run_log import RunLog, loggable


class RunWandb(WandbLogger, RunLog):
    """A run at Weights & Biases, or in the run folder for `wandb sync`."""

    _experiment: Any

    def __init__(self, settings: WandbConfig, run: RunFacts, name: str) -> None:
        import wandb

        run_id = run.logger_ids.get(name)
        super().__init__(
            name=run.name,
            save_dir=run.folder,
            id=run_id,
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            mode=settings.mode.value,
            tags=list(run.tags),
            resume="allow" if run_id else None,
            settings=wandb.Settings(console="off", disable_code=True, silent=True),
        )
        self.logs_checkpoints = settings.log_checkpoints
        self._samples: list[list[Any]] = []  # a table is logged as a whole

    def add_config(self, config: dict[str, Any], text: str, step: int) -> None:
        """Log the settings as the run's config."""
        self.log_hyperparams(config)

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Log the texts so far as a table."""
        self._samples += [[step, paragraph] for paragraph in text.split("\n\n")]
        self.log_text(tag, columns=["step", "text"], data=self._samples, step=step)

    def add_checkpoint(self, folder: Path, step: int) -> None:
        """Log the folder as an artifact of type model."""
        import wandb

        artifact = wandb.Artifact(f"checkpoint-{self.experiment.id}", type="model", metadata={"step": step})
        artifact.add_dir(str(folder))
        self.experiment.log_artifact(artifact)

    def close(self, failed: bool) -> None:
        """Finish the run, so that the process can start another one."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(failed))
            self._experiment = None


class RunMLflow(MLFlowLogger, RunLog):
    """A run in MLflow's store: at the address of MLFLOW_TRACKING_URI, or in a local SQLite file."""

    def __init__(self, settings: MLflowConfig, run: RunFacts, name: str) -> None:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        uri = settings.address(run.config["paths"]["logs_dir"])
        super().__init__(
            experiment_name=settings.experiment,
            run_name=run.name,
            tracking_uri=uri,
            run_id=run.logger_ids.get(name),
            tags=dict.fromkeys(run.tags, "true"),
            artifact_location=settings.artifacts(uri),
        )
        self.is_new = name not in run.logger_ids
        self.logs_checkpoints = settings.log_checkpoints

    def add_config(self, config: dict[str, Any], text: str, step: int) -> None:
        """Log the settings as parameters, which MLflow never changes, and those of every start as a file."""
        if self.is_new:
            self.log_hyperparams(loggable(config))
        self.experiment.log_text(self.run_id, text, f"config/step-{step:08}.yaml")

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Log the texts as rows of a table, and as a file for each step."""
        paragraphs = text.split("\n\n")
        rows = {"step": [step] * len(paragraphs), "text": paragraphs}
        self.experiment.log_table(self.run_id, rows, f"{tag}.json")
        self.experiment.log_text(self.run_id, text, f"{tag}/step-{step:08}.txt")

    def add_checkpoint(self, folder: Path, step: int) -> None:
        """Log the folder as an artifact."""
        self.experiment.log_artifacts(self.run_id, str(folder), f"checkpoints/{folder.name}")

    def close(self, failed: bool) -> None:
        """Mark the run as finished or failed."""
        self.finalize("failed" if failed else "success")


class RunComet(CometLogger, RunLog):
    """An experiment at Comet, or an archive in the run folder for `comet upload`."""

    _experiment: Any

    def __init__(self, settings: CometConfig, run: RunFacts, name: str) -> None:
        super().__init__(
            workspace=settings.workspace,
            project=settings.project,
            experiment_key=run.logger_ids.get(name),
            online=settings.online,
            name=run.name,
            tags=list(run.tags),
            offline_directory=str(run.folder / "comet"),
            log_code=False,
            auto_output_logging=False,
            log_env_details=False,
        )
        self.logs_checkpoints = settings.log_checkpoints

    def _create_experiment(self) -> None:
        if self._online is False:  # for which Lightning turns the experiment off
            import comet_ml

            self._comet_config = comet_ml.ExperimentConfig(**self._kwargs)
        super()._create_experiment()

    def add_config(self, config: dict[str, Any], text: str, step: int) -> None:
        """Log the settings as parameters."""
        self.log_hyperparams(loggable(config))

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Log the paragraphs one by one; Comet lists them as a table."""
        for paragraph in text.split("\n\n"):
            self.experiment.log_text(paragraph, step=step, metadata={"tag": tag})

    def add_checkpoint(self, folder: Path, step: int) -> None:
        """Log the folder as assets."""
        self.experiment.log_asset_folder(str(folder), step=step, log_file_name=True)

    def close(self, failed: bool) -> None:
        """End the experiment, which writes the archive of an offline one."""
        if self._experiment is not None:
            self._experiment.end()
