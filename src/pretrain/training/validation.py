"""Validation before the first step of a process and after its last; those in between are Lightning's to begin."""

from collections.abc import Mapping
from pathlib import Path

import lightning as L

from pretrain.config import RunConfig
from pretrain.errors import ConfigError
from pretrain.training.data import TextDataModule
from pretrain.training.loggers import TABLE, has_figures
from pretrain.training.module import TrainingModule


def validates_first(config: RunConfig, folder: Path, start: int) -> bool:
    """Return whether a run that stands at step `start` validates before its next one.

    It does at its very beginning, if told to: those figures are in every checkpoint. A resume does where that step was
    saved and not validated any more: a run ended in between, by a signal or by a kill while it validated. A run that
    keeps no table does not know.
    """
    if start == 0:
        return config.trainer.validate_first
    due = config.logger.csv and start % config.trainer.val_check_interval == 0
    return due and not has_figures(folder / TABLE, start, "val/")


def check_first_validation(config: RunConfig, validates: bool) -> None:
    """Raise ConfigError where the settings ask for a first validation and the data keep nothing to validate on."""
    if config.trainer.validate_first and not validates:
        raise ConfigError(
            "trainer.validate_first=true scores validation documents before the first step, and the data keep none: "
            f"data.validation_fraction={config.data.validation_fraction:g}. Try data.validation_fraction=0.05."
        )


def final_validation(trainer: L.Trainer, module: TrainingModule, data: TextDataModule) -> dict[str, float]:
    """Return the figures of the weights at the end, from the last validation if it was at the last step."""
    if not data.validation_streams:
        return {}
    if module.validated_at != trainer.global_step:
        trainer.validate(module, datamodule=data, verbose=False)
    return module.validated


def changes(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """Return lines with the validation loss before the first step and now, in nats: of all, then of each source.

    None where there was no validation before the first step.
    """
    names = [key.removeprefix("val/").removesuffix("loss").rstrip("/") for key in after if key.endswith("/loss")]
    keys = {name: f"val/{name}/loss" if name else "val/loss" for name in names}
    found = {name or "all": (before[key], after[key]) for name, key in keys.items() if key in before}
    if not found:
        return []
    width = max(16, *map(len, found))
    return ["  since the start    validation loss in nats"] + [
        f"    {name:<{width}} {first:.4f} -> {last:.4f} ({last - first:+.4f})" for name, (first, last) in found.items()
    ]
