"""What to change in a run that does not fit, as settings to paste."""

from pretrain.planning.config import PlanConfig
from pretrain.planning.fit import Candidate, devices_that_fit, fit, smallest
from pretrain.planning.forecast import Place
from pretrain.planning.units import gib

KEEPS_LOSSES = "same batch_size, so the same losses"


def settings_that_fit(config: PlanConfig, place: Place) -> list[str]:
    """Return lines with settings that fit the device, or with what else would help where none do."""
    found = fit(config, place)
    if found is not None:
        return [f"Settings that fit ({_figures(found)}; {KEEPS_LOSSES})", f"  {found.words()}", *_dropout(config)]
    least = smallest(config, place)
    lines = [
        f"No micro-batch, checkpointing or sharding fits {gib(least.forecast.usable)}: the least is {_figures(least)}",
        f"  {least.words()}",
    ]
    devices = devices_that_fit(config, place)
    if devices is not None:
        lines += ["It would fit on more devices", f"  trainer=fsdp trainer.devices={devices}"]
        return [*lines, *_dropout(config)]
    shorter = config.model.context_length // 2
    return [
        *lines,
        "Try a smaller model, a device with more memory, or shorter rows",
        f"  model.context_length={shorter}",
    ]


def _figures(found: Candidate) -> str:
    return f"{gib(found.forecast.peak)}, {found.forecast.cost.tokens_per_s:,.0f} tokens/s"


def _dropout(config: PlanConfig) -> list[str]:
    """Return a line where the losses can only be alike, not equal."""
    if not (getattr(config.model, "dropout", 0) or getattr(config.model, "attention_dropout", 0)):
        return []
    return ["  dropout is drawn for each micro-batch, so with another micro_batch_size other numbers are dropped"]
