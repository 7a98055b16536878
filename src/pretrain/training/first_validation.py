"""Validation before the first step: what the weights that a run starts from score, to see what the run has changed."""

from collections.abc import Mapping

from pretrain.config import RunConfig
from pretrain.errors import ConfigError


def validates_first(config: RunConfig, start: int) -> bool:
    """Return whether a run that stands at step `start` validates before its next one: it does at its very beginning.

    Later figures would be of other weights; those of the beginning are in every checkpoint.
    """
    return config.trainer.validate_first and start == 0


def check_first_validation(config: RunConfig, validates: bool) -> None:
    """Raise ConfigError where the settings ask for a first validation and the data keep nothing to validate on."""
    if config.trainer.validate_first and not validates:
        raise ConfigError(
            "trainer.validate_first=true scores validation documents before the first step, and the data keep none: "
            f"data.validation_fraction={config.data.validation_fraction:g}. Try data.validation_fraction=0.05."
        )


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
