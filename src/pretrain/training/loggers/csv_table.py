"""The table metrics.csv: one row of step, name and value per metric; beside it samples.jsonl."""

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pretrain.files.atomic_files import write_atomically
from pretrain.launch.run_folder import TABLE, opened_to_append, read_rows
from pretrain.reports.history import Sample, append_sample, keep_samples
from pretrain.training.loggers.run_log import RunLog


class LongCSVLogger(Logger, RunLog):
    """Appends step, name, value. A resume first drops rows beyond its step, a restart from step 0 all rows."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        super().__init__()
        self.path = path
        keep_samples(path.parent, resumed_at if resumed_at else -1)
        rows = [row for row in read_rows(path) if int(row["step"]) <= resumed_at] if resumed_at else []
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["step", "name", "value"])
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, text.getvalue().encode())  # a kill here loses no earlier row

    @property
    def name(self) -> str:
        """Lightning's name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """An empty version: a run folder has one table."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row per metric."""
        with opened_to_append(self.path) as file:
            csv.writer(file).writerows([step, name, repr(float(value))] for name, value in metrics.items())

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Append a sample to samples.jsonl."""
        append_sample(self.path.parent, Sample(step, tag, text))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the settings are in the run folder and in every checkpoint."""


def open_table(folder: Path, resumed_at: int) -> LongCSVLogger:
    """Return the logger of a run folder's metrics.csv."""
    return LongCSVLogger(folder / TABLE, resumed_at)


def has_figures(table: Path, step: int, prefix: str) -> bool:
    """Return whether a run's table has metrics of this step whose names start with `prefix`."""
    return any(row["step"] == str(step) and row["name"].startswith(prefix) for row in read_rows(table))
