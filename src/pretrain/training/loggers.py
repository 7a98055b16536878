"""Where figures go: TensorBoard, and a table that any program reads."""

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from pretrain.data.store_files import write_atomically
from pretrain.run_folder import opened_to_append
from pretrain.run_folder import read_rows as read_rows

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


class LongCSVLogger(Logger):
    """Appends step, name, value; a resume first drops rows beyond the step it goes on from, so none stands twice.

    A run that goes back to its start drops all, also what it wrote before the first step.
    """

    def __init__(self, path: Path, resumed_at: int) -> None:
        super().__init__()
        self.path = path
        rows = [row for row in read_rows(path) if int(row["step"]) <= resumed_at] if resumed_at else []
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["step", "name", "value"])
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, text.getvalue().encode())  # a kill here loses no figure of the steps before

    @property
    def name(self) -> str:
        """Return the name by which Lightning knows the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Return nothing: a run folder has one table."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row for each figure."""
        with opened_to_append(self.path) as file:
            csv.writer(file).writerows([step, name, repr(float(value))] for name, value in metrics.items())

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the settings are in the run folder and in every checkpoint."""


def has_figures(table: Path, step: int, prefix: str) -> bool:
    """Whether a run's table has figures of this step whose names begin so."""
    return any(row["step"] == str(step) and row["name"].startswith(prefix) for row in read_rows(table))


def compare_by_settings(trainer: L.Trainer, settings: dict[str, Any], figures: dict[str, float]) -> None:
    """Have TensorBoard's HParams page show the run: what shaped it, beside the last values of its final figures."""
    flat = {
        key: value
        for key, value in _flat(settings, "").items()
        if key.startswith(_SHAPING) or key.endswith((".weight", ".epochs"))  # the parts of a mixture
    }
    for logger in trainer.loggers:
        if isinstance(logger, RunTensorBoard) and figures:
            writer = logger.experiment._get_file_writer()
            for summary in hparams(flat, figures):  # names the figures; their values are the scalars written before
                writer.add_summary(summary)
            writer.flush()


def _flat(settings: dict[str, Any], prefix: str) -> dict[str, bool | float | str]:
    found: dict[str, bool | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
