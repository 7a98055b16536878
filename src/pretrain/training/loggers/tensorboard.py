"""TensorBoard: curves, text, and the settings of a sweep beside their validation loss."""

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[import-untyped]
from torch.utils.tensorboard.summary import hparams

from pretrain.launch.run_folder import SWEPT

# settings of the HParams page, by how their full names begin
_SHAPING = (
    "name", "seed", "batch_size", "data.kind", "tokenizer.", "objective.", "optimizer.", "schedule.",
    "trainer.max_steps", "model.n_layers", "model.d_model", "model.n_heads", "model.context_length", "model.dropout",
)  # fmt: skip


class RunTensorBoard(TensorBoardLogger):
    """TensorBoard's event files in the run folder itself, so that TensorBoard calls the run by its folder.

    A resume has figures beyond the step it goes on from taken back, for they would stand twice; a run that goes back to
    its start, all.
    """

    def __init__(self, folder: Path, resumed_at: int) -> None:
        again = resumed_at or any(folder.glob("events.out.*"))
        purge_step = resumed_at + 1 if resumed_at else 0
        super().__init__(folder, name="", version="", purge_step=purge_step if again else None)

    @rank_zero_only
    def save(self) -> None:
        """Write what is pending; unlike the parent's, leave no hparams.yaml: the settings are in config.yaml."""
        if self._experiment is not None:
            self.experiment.flush()


def compare_by_settings(trainer: L.Trainer, settings: dict[str, Any], figures: dict[str, float]) -> None:
    """Add the run to TensorBoard's HParams page: its settings beside the last values of its final figures.

    The page shows five settings at first: in a sweep those that differ between its jobs.
    """
    swept = tuple(filter(None, os.environ.get(SWEPT, "").split(",")))
    flat = {
        key: value
        for key, value in _flat(settings, "").items()
        if key.startswith(_SHAPING + swept) or key.endswith((".weight", ".epochs"))  # the parts of a mixture
    }
    for logger in trainer.loggers:
        if isinstance(logger, RunTensorBoard) and figures:
            writer = logger.experiment._get_file_writer()
            experiment, *session = hparams(flat, figures)  # figures by name; their values are the scalars before
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


def _flat(settings: dict[str, Any], prefix: str) -> dict[str, bool | float | str]:
    found: dict[str, bool | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
