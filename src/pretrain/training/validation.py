"""Validation before the first step and after the last, and the reasons why a source has none."""

from collections.abc import Collection, Mapping
from pathlib import Path

import lightning as L

from pretrain.config.run import RunConfig
from pretrain.data.config import DataConfig, Mode
from pretrain.data.prepare import Prepared
from pretrain.data.train_stream import ShuffledRows
from pretrain.errors import ConfigError
from pretrain.launch.run_folder import TABLE
from pretrain.training.datamodule import TextDataModule
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.loggers.csv_table import has_figures

FEW_TARGETS = 1_000  # the loss varies by 2 to 3 nats between tokens, so the mean of fewer is uncertain by over 0.1
_NOT_IN_FIRST_ERA = "no document of the stream's first era is held out"
_HOLDS_NOTHING = "data.validation_fraction=0 holds nothing out"


def validates_first(config: RunConfig, folder: Path, start: int) -> bool:
    """Return whether a run that starts from step `start` validates before its next step.

    A new run does with `trainer.validate_first`. A resume does if its step was due and metrics.csv has no validation of
    it: the run ended between checkpoint and validation; or if a callback watches validations, which the checkpoint of
    that step has not counted yet. Otherwise without metrics.csv a resume does not.
    """
    if start == 0:
        return config.trainer.validate_first
    if start % config.trainer.val_check_interval:
        return False
    counted = any(callback.monitors_validation for callback in config.callbacks.values())  # a checkpoint comes before
    return counted or (config.keeps_table and not has_figures(folder / TABLE, start, "val/"))


def not_validated(data: DataConfig, prepared: Prepared, validated: Collection[str]) -> dict[str, str]:
    """Return the reason for each source that is not in `validated`, by name; a single source is named ""."""
    reasons = {}
    for name, part in data.parts().items():
        if name in validated:
            continue
        corpus = prepared.corpora[name]
        if corpus.validation is not None:
            reasons[name] = "the held-out documents have no target token"
        elif part.validation_fraction == 0.0:
            reasons[name] = _HOLDS_NOTHING
        elif part.mode is Mode.stream:
            reasons[name] = _NOT_IN_FIRST_ERA
        elif part.annotated:
            count = f"{corpus.train.n_documents:,} documents"
            reasons[name] = f"data.validation_fraction={part.validation_fraction:g} of {count} is less than one"
        else:  # a store of a version that held nothing out of few documents
            reasons[name] = f"the store {corpus.folder} holds nothing out; delete it, and a new one will"
    return reasons


def validation_warnings(reasons: Mapping[str, str], validated: Mapping[str, ShuffledRows]) -> list[str]:
    """Return a warning for each source that is unexpectedly not validated, and for each small validation.

    `reasons` is the result of `not_validated`; `validated` holds the rows of the other sources by name.
    """
    warnings = []
    for name, reason in reasons.items():
        if reason in (_HOLDS_NOTHING, _NOT_IN_FIRST_ERA):  # asked for; `prepare` has logged the latter
            continue
        scope = f", and val/loss is that of {', '.join(validated)} alone" if validated else ""
        warnings.append(f"{f'source {name} has ' if name else ''}no validation: {reason}{scope}.")
    for name, rows in validated.items():
        if rows.store.n_tokens < FEW_TARGETS:
            source = f" of source {name}" if name else ""
            warnings.append(
                f"the validation{source} has {too_few(rows.store.n_tokens)}. Try a larger data.validation_fraction, "
                "or more text."
            )
    return warnings


def too_few(tokens: int) -> str:
    """Return a phrase for a validation of fewer than FEW_TARGETS tokens."""
    return f"{tokens:,} tokens: too few to compare runs"


def check_first_validation(config: RunConfig, reasons: Mapping[str, str], validates: bool) -> None:
    """Raise ConfigError for `trainer.validate_first` without validation data; `reasons` says why there is none."""
    if config.trainer.validate_first and not validates:
        raise ConfigError(
            "trainer.validate_first=true scores validation documents before the first step, and there are none: "
            f"{'; '.join(dict.fromkeys(reasons.values()))}. Try data.validation_fraction=0.05, or "
            "trainer.validate_first=false."
        )


def final_validation(trainer: L.Trainer, module: TrainingModule, data: TextDataModule) -> dict[str, float]:
    """Return the metrics of the final weights; validate unless the last validation was at the last step."""
    if not data.validation_streams:
        return {}
    if module.validated_at != trainer.global_step:
        trainer.validate(module, datamodule=data, verbose=False)
    return module.validated


def changes(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """Return lines with the validation loss before the first step and now, in nats, of all and of each source.

    [] without a validation before the first step.
    """
    names = [key.removeprefix("val/").removesuffix("loss").rstrip("/") for key in after if key.endswith("/loss")]
    keys = {name: f"val/{name}/loss" if name else "val/loss" for name in names}
    losses = {name or "all": (before[key], after[key]) for name, key in keys.items() if key in before}
    if not losses:
        return []
    width = max(16, *map(len, losses))
    return ["  since the start    validation loss in nats"] + [
        f"    {name:<{width}} {first:.4f} -> {last:.4f} ({last - first:+.4f})" for name, (first, last) in losses.items()
    ]
