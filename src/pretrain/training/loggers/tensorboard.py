"""TensorBoard: curves, text, and the HParams page that compares the runs of a sweep."""

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[import-untyped]
from torch.utils.tensorboard.summary import hparams

from pretrain.launch.run_folder import SWEPT
from pretrain.training.loggers.run_log import RunLog, loggable

# prefixes of the settings on the HParams page
_HPARAMS = (
    "name", "seed", "batch_size", "data.kind", "tokenizer.", "objective.", "optimizer.", "schedule.",
    "trainer.max_steps", "model.n_layers", "model.d_model", "model.n_heads", "model.context_length", "model.dropout",
)  # fmt: skip


class RunTensorBoard(TensorBoardLogger, RunLog):
    """Writes event files into the run folder itself, so that TensorBoard names the run by its folder.

    A resume purges metrics beyond its step, a restart from step 0 all of them.
    """

    def __init__(self, folder: Path, resumed_at: int) -> None:
        again = resumed_at or any(folder.glob("events.out.*"))
        purge_step = resumed_at + 1 if resumed_at else 0
        super().__init__(folder, name="", version="", purge_step=purge_step if again else None)

    def add_config(self, config: dict[str, Any], text: str, step: int) -> None:
        """Log the settings as text."""
        self.add_text("config", text, step)

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Log text verbatim."""
        indented = "\n".join(f"    {line}" for line in text.splitlines())  # four spaces: Markdown shows it verbatim
        self.experiment.add_text(tag, indented, step)

    @rank_zero_only
    def save(self) -> None:
        """Flush the event file; unlike the base class, write no hparams.yaml, as config.yaml has the settings."""
        if self._experiment is not None:
            self.experiment.flush()


def compare_by_settings(trainer: L.Trainer, settings: dict[str, Any], metrics: dict[str, float]) -> None:
    """Add the run to TensorBoard's HParams page: its main settings and its final metrics.

    The page shows five settings at first: in a sweep those that differ between its jobs.
    """
    swept = tuple(filter(None, os.environ.get(SWEPT, "").split(",")))
    shown = {
        key: value
        for key, value in loggable(settings).items()
        if key.startswith(_HPARAMS + swept) or key.endswith((".weight", ".epochs"))  # of a mixture's sources
    }
    for logger in trainer.loggers:
        if isinstance(logger, RunTensorBoard) and metrics:
            writer = logger.experiment._get_file_writer()
            experiment, *session = hparams(shown, metrics)  # only names the metrics, which are logged
            for summary in (_with_swept(experiment, swept), *session):
                writer.add_summary(summary)
            writer.flush()


def _with_swept(experiment: Any, swept: tuple[str, ...]) -> Any:
    """Return the summary of an experiment with the swept settings marked, which TensorBoard lists first."""
    data = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(data.content)
    for info in content.experiment.hparam_infos:
        info.differs = any(f"{info.name}.".startswith(f"{key}.") for key in swept)
    data.content = content.SerializeToString()
    return experiment
