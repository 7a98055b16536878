"""Validation before the first step of a process and after its last; those in between are Lightning's to begin."""

from collections.abc import Collection, Mapping
from pathlib import Path

import lightning as L

from pretrain.config.run import RunConfig
from pretrain.data.config import DataConfig, Mode
from pretrain.data.fine_tuning_config import AnnotatedConfig
from pretrain.data.prepare import Prepared
from pretrain.data.train_stream import ShuffledRows
from pretrain.errors import ConfigError
from pretrain.launch.run_folder import TABLE
from pretrain.training.datamodule import TextDataModule
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.loggers.csv_table import has_figures

FEW_TARGETS = 1_000  # a loss varies by 2 to 3 nats from token to token: the mean of so many is known to within 0.1
_NOT_IN_FIRST_ERA = "no document of the stream's first era is held out"
_HOLDS_NOTHING = "data.validation_fraction=0 holds nothing out"


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


def not_validated(data: DataConfig, prepared: Prepared, validated: Collection[str]) -> dict[str, str]:
    """Return why a source is not `validated`, by its name, for each that is not; one read alone has the name ""."""
    found = {}
    for name, part in data.parts().items():
        if name in validated:
            continue
        corpus = prepared.corpora[name]
        if corpus.validation is not None:
            found[name] = "nothing of what is held out is to be predicted"
        elif part.validation_fraction == 0.0:
            found[name] = _HOLDS_NOTHING
        elif part.mode is Mode.stream:
            found[name] = _NOT_IN_FIRST_ERA
        elif isinstance(part, AnnotatedConfig):
            count = f"{corpus.train.n_documents:,} documents"
            found[name] = f"data.validation_fraction={part.validation_fraction:g} of {count} is less than one"
        else:  # a store of a version that held nothing out of few documents
            found[name] = f"the store {corpus.folder} holds nothing out; without it, it is made again and does"
    return found


def validation_warnings(reasons: Mapping[str, str], validated: Mapping[str, ShuffledRows]) -> list[str]:
    """Return a sentence for each source that is not validated, though not told so, and for each validation too small.

    `reasons` are what `not_validated` returns, `validated` the rows of the others, by source.
    """
    found = []
    for name, reason in reasons.items():
        if reason in (_HOLDS_NOTHING, _NOT_IN_FIRST_ERA):  # of the latter `prepare` has told, with what to do
            continue
        rest = f", and val/loss is that of {', '.join(validated)} alone" if validated else ""
        found.append(f"{f'source {name} has ' if name else ''}no validation: {reason}{rest}.")
    for name, rows in validated.items():
        if rows.store.n_tokens < FEW_TARGETS:
            source = f" of source {name}" if name else ""
            found.append(
                f"the validation{source} has {too_few(rows.store.n_tokens)}. Try a larger data.validation_fraction, "
                "or more text."
            )
    return found


def too_few(tokens: int) -> str:
    """Return what to say of a validation of so few tokens."""
    return f"{tokens:,} tokens: too few to compare runs by"


def check_first_validation(config: RunConfig, reasons: Mapping[str, str], validates: bool) -> None:
    """Raise ConfigError where the settings ask for a first validation and the data keep nothing to validate on.

    `reasons` are what `not_validated` returns.
    """
    if config.trainer.validate_first and not validates:
        raise ConfigError(
            "trainer.validate_first=true scores validation documents before the first step, and there are none: "
            f"{'; '.join(dict.fromkeys(reasons.values()))}. Try data.validation_fraction=0.05, or "
            "trainer.validate_first=false."
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
