"""TensorBoard: curves, text, and the HParams page that compares the runs of a sweep."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[import-untyped]
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from pretrain.launch.run_folder import SWEPT
from pretrain.training.loggers.run_log import RunLog, loggable

# prefixes of the settings on the HParams page
_HPARAMS = (
    "name", "seed", "batch_size", "data.kind", "tokenizer.", "objective.", "optimizer.", "schedule.",
    "trainer.max_steps", "model.n_layers", "model.d_model", "model.n_heads", "model.context_length", "model.dropout",
)  # fmt: skip

VALIDATION = "validation"  # folder of the validation's events in the run folder: a run of its own to TensorBoard

# TensorBoard shows groups of tags by name. These names put them in the order in which people look: loss, optim,
# optim_norms, scores, speed, text, utilization.
_GROUPS = {
    "train/": "",
    "val/loss": "loss",
    "val/": "loss/",
    "weights/": "optim_norms/",
    "eval/": "scores/",
    "progress/": "text/",
    "speed/data_wait_s": "text/data_wait_s",
    "system/": "utilization/",
}
_FIRST_METRICS = ("val/loss", "val/bits_per_byte", "val/accuracy")  # columns of the HParams page


def tag_of(name: str) -> str:
    """Return TensorBoard's tag of a metric. `train/loss` and `val/loss` share one, and so one chart."""
    for prefix, tag in _GROUPS.items():
        if name == prefix or (prefix.endswith("/") and name.startswith(prefix)):
            return tag + name.removeprefix(prefix)
    return name


class RunTensorBoard(TensorBoardLogger, RunLog):
    """Writes event files into the run folder itself, so that TensorBoard names the run by its folder.

    Validation metrics go to the folder `validation` in it: TensorBoard draws equal tags of several runs into one
    chart. A curve of the optimizer or of speed that never changes is left out. A resume purges metrics beyond its step,
    a restart from step 0 all of them.
    """

    def __init__(self, folder: Path, resumed_at: int) -> None:
        again = resumed_at or any(folder.glob("events.out.*"))
        self._purge_step = (resumed_at + 1 if resumed_at else 0) if again else None
        self._folder = folder
        self._validation: SummaryWriter | None = None
        self._constant = _ConstantCurves() if not resumed_at else None  # after a resume a curve goes on as it is
        super().__init__(folder, name="", version="", purge_step=self._purge_step)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write metrics by TensorBoard's tags."""
        for name, value in metrics.items():
            writer = self.validation if name.startswith("val/") else self.experiment
            points = self._constant.changed(name, step or 0, float(value)) if self._constant else [(step, value)]
            for at, point in points:
                writer.add_scalar(tag_of(name), point, at)

    @property
    def validation(self) -> SummaryWriter:
        """The writer of the validation's metrics."""
        if self._validation is None:
            self._validation = SummaryWriter(self._folder / VALIDATION, purge_step=self._purge_step)
        return self._validation

    def add_config(self, config: dict[str, Any], text: str, step: int) -> None:
        """Log the settings as text."""
        self.add_text("config", text, step)

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Log text verbatim."""
        indented = "\n".join(f"    {line}" for line in text.splitlines())  # four spaces: Markdown shows it verbatim
        self.experiment.add_text(tag, indented, step)

    @rank_zero_only
    def save(self) -> None:
        """Flush the event files; unlike the base class, write no hparams.yaml, as config.yaml has the settings."""
        if self._experiment is not None:
            self.experiment.flush()
        if self._validation is not None:
            self._validation.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush and close the event files."""
        super().finalize(status)
        if self._validation is not None:
            self._validation.close()


class _ConstantCurves:
    """Holds back the points of a curve of the optimizer or of speed until it changes."""

    _PREFIXES = ("optim/", "speed/")

    def __init__(self) -> None:
        self._held: dict[str, list[tuple[int, float]]] = {}  # first and last point; empty once the curve has changed

    def changed(self, name: str, step: int, value: float) -> list[tuple[int, float]]:
        """Return the points to write now, as (step, value)."""
        point = (step, value)
        if not name.startswith(self._PREFIXES):
            return [point]
        held = self._held.get(name)
        if held is None or (held and held[0][1] == value):
            self._held[name] = [*(held or [])[:1], point]
            return []
        self._held[name] = []
        return [*held, point]


def compare_by_settings(
    trainer: L.Trainer, settings: dict[str, Any], metrics: dict[str, float], typed: Sequence[str]
) -> None:
    """Add the run to TensorBoard's HParams page: its main settings and its final metrics.

    The page shows five settings at first: in a sweep those that differ between its jobs. A swept preset, such as
    model=gpt_nano of the overrides `typed`, is one of them, not all the settings that it brings.
    """
    swept = frozenset(filter(None, os.environ.get(SWEPT, "").split(",")))
    shown = {
        key: value
        for key, value in loggable(settings).items()
        if key.startswith(_HPARAMS) or key in swept or key.endswith((".weight", ".epochs"))  # of a mixture's sources
    }
    words = (word.lstrip("+").partition("=") for word in typed)
    shown |= {key: value for key, _, value in words if key in swept and key not in shown}
    for logger in trainer.loggers:
        if isinstance(logger, RunTensorBoard) and metrics:
            writer = logger.experiment._get_file_writer()
            first = {name: metrics[name] for name in _FIRST_METRICS if name in metrics}
            experiment, *session = hparams(shown, first | metrics)  # only names the metrics, which are logged
            for summary in (_with_swept(experiment, swept), *session):
                writer.add_summary(summary)
            writer.flush()


def _with_swept(experiment: Any, swept: frozenset[str]) -> Any:
    """Return the summary of an experiment with swept settings marked, and metrics named as they are logged."""
    data = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(data.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in swept  # TensorBoard lists these first
    for info in content.experiment.metric_infos:
        info.display_name = info.name.tag
        info.name.group, info.name.tag = VALIDATION, tag_of(info.name.tag)
    data.content = content.SerializeToString()
    return experiment
