"""What a run is told of its learning rate before it begins: a decay cut short, a rate that a resume changes."""

import math
from dataclasses import replace

from pretrain.checkpoint.read import Checkpoint
from pretrain.config.run import RunConfig
from pretrain.data.batch_sizes import BatchSizes
from pretrain.optim.schedules import WSDConfig
from pretrain.training.run_length import RunLength, run_length


def shortened_decay(config: RunConfig, steps: int, warmup: int) -> str | None:
    """Return a sentence where the warm-up leaves fewer steps to the decay than the settings ask for."""
    if not isinstance(config.schedule, WSDConfig):
        return None
    share = config.schedule.decay_fraction
    left, asked = steps - warmup, round(share * steps)
    if asked <= left:
        return None
    return (
        f"schedule.decay_fraction={share:g} asks for {asked:,} steps of decay, and the warm-up of {warmup:,} steps "
        "leaves "
        f"{left:,} of {steps:,}: the decay takes those."
    )


def rate_change(resumed: Checkpoint, config: RunConfig, length: RunLength, batch_sizes: BatchSizes) -> str | None:
    """Return one line with both learning rates where new settings change that of a resumed run's next step.

    A run that goes on longer than it was planned comes back to a higher place of its schedule. `length` and
    `batch_sizes` are by the settings `config` with which it goes on. None where the rate is the same.
    """
    saved, step = resumed.run_config(), resumed.step
    saved_sizes = BatchSizes.saved(resumed.progress, saved.step_size())
    saved_length = run_length(saved, length.seconds, saved_sizes)
    expected, after = _rate(saved, saved_length, saved_sizes, step), _rate(config, length, batch_sizes, step)
    if math.isclose(expected, after, rel_tol=1e-9, abs_tol=1e-15):
        return None
    reason = "its settings have changed"
    if str(saved_length) != str(length):
        reason = f"schedule={config.schedule.kind} ran over {saved_length} before, and over {length} from here on"
    before = _rate(saved, saved_length, saved_sizes, max(0, step - 1))
    return f"the learning rate goes from {before:.3g} at step {step:,} to {after:.3g} at step {step + 1:,}: {reason}."


def _rate(config: RunConfig, length: RunLength, batch_sizes: BatchSizes, step: int) -> float:
    """Return the learning rate of a step (from 0) of a run."""
    schedule = replace(config.schedule, warmup_steps=config.warmup_steps(batch_sizes))
    return config.optimizer.learning_rate * schedule.lr_multiplier(step, length.planned_steps(step))
