"""A branch: a new run that goes on from any checkpoint of a run with schedule=wsd, and decays at once.

Its data, its random numbers and its steps are those of the run, so that it equals, bit for bit, a run that was never
interrupted and whose decay begins at the same step. Source: Haegele et al. 2024, https://arxiv.org/abs/2405.18392.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from pretrain.checkpoint.read import Checkpoint, open_checkpoint
from pretrain.checkpoint.remote import local_path
from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.launch.rank import log
from pretrain.launch.resume import merge, saved_sizes
from pretrain.launch.run_folder import CHECKPOINTS
from pretrain.optim.schedules import WSDConfig

_LENGTHS = ("trainer.max_steps", "trainer.max_tokens", "trainer.max_epochs", "trainer.max_time")
_MAY_CHANGE = ["schedule.decay", "schedule.min_lr_ratio"]


def is_begun(resumed: Checkpoint) -> bool:
    """Return whether a checkpoint was written by a branch, rather than copied from the run that it left."""
    return resumed.config.get("branch") is not None


def begins(config: RunConfig, resumed: Checkpoint | None) -> bool:
    """Return whether a start is that of a branch, which goes on from the checkpoint of the run that it leaves."""
    return config.branch is not None and resumed is not None and not is_begun(resumed)


def open_base(config: RunConfig, resumed: Checkpoint | None) -> Checkpoint:
    """Return the checkpoint that a branch leaves; `resumed` is one in the branch's folder, if there is one.

    Raises ConfigError where `resumed` is of another run.
    """
    base = open_checkpoint(local_path(str(config.branch), config.paths.cache_dir, log))
    is_base = resumed is not None and resumed.folder.parent.parent.resolve() == base.folder.parent.parent.resolve()
    if resumed is not None and (is_base or resumed.step != base.step):
        raise ConfigError(
            f"resume={config.resume} finds {resumed.folder}, which is no branch of {config.branch}. "
            "Give the branch a folder of its own: paths.run_dir=logs/branch."
        )
    return base


def copy_base(base: Checkpoint, folder: Path) -> Checkpoint:
    """Return a copy of the checkpoint in the branch's folder: it resumes and rewinds without the run that it left.

    Raises CheckpointError if it cannot be written.
    """
    copy = folder / CHECKPOINTS / base.folder.name
    partial = copy.with_name(f"{copy.name}.tmp")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(base.folder, partial)
        partial.rename(copy)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {base.folder} cannot be copied to {folder}: {error}. Free some space, or choose "
            "another disk: paths.run_dir=<folder>."
        ) from error
    return open_checkpoint(copy)


def branched(config: RunConfig, overrides: list[str], base: Checkpoint) -> RunConfig:
    """Return the settings of a branch: those of the run that it leaves, with a decay from the next step on.

    Raises ConfigError for a run or a step from which no decay can start, and as `merge` does.
    """
    if lengths := [word for word in overrides if word.partition("=")[0].lstrip("+") in _LENGTHS]:
        raise ConfigError(f"{lengths[0]} and cooldown={config.cooldown:g} both say when the branch ends. Leave it out.")
    if typed := [word for word in overrides if word.partition("=")[0].lstrip("+") == "schedule.decay_fraction"]:
        raise ConfigError(
            f"{typed[0]} and cooldown={config.cooldown:g} both say how long the branch decays. Leave "
            "schedule.decay_fraction out."
        )
    merged = merge(replace(config, allow_change=[*config.allow_change, *_MAY_CHANGE]), overrides, base)
    schedule, step = merged.schedule, base.step
    if not isinstance(schedule, WSDConfig):
        raise ConfigError(
            f"branch={config.branch} is of a run with schedule={schedule.kind}, whose rate hangs on its length from "
            "the first step on. Branch a run with schedule=wsd."
        )
    if merged.stages:
        raise ConfigError(
            f"branch={config.branch} is of a run with stages, which have ends of their own. Give its last stage the "
            "decay instead, such as stages.last.schedule.decay_fraction=0.2."
        )
    before = _check_constant_rate(config, merged, schedule, base)
    steps = cooldown_steps(float(config.cooldown or 0.0), step)
    length = step + steps
    log(f"branching from step {step:,}: the rate decays over {steps:,} steps, to step {length:,}")
    return replace(
        merged,
        trainer=replace(merged.trainer, max_steps=length, max_tokens=None, max_epochs=None, max_time=None),
        schedule=replace(
            schedule, decay_fraction=steps / length, warmup_steps=before, warmup_tokens=None, warmup_fraction=None
        ),
    )


def _check_constant_rate(config: RunConfig, merged: RunConfig, schedule: WSDConfig, base: Checkpoint) -> int:
    """Return the steps of the warm-up; raises ConfigError where the rate at the base is not that of the peak.

    Of a run that ends by the clock the number of steps is the one that it expected at its pace so far.
    """
    step, sizes = base.step, saved_sizes(base)
    total, seconds = base.progress.get("max_steps"), float(base.progress.get("seconds", 0.0))
    if total is None:  # an earlier version saved none
        total = merged.max_steps(sizes)
    if merged.trainer.max_time is not None and seconds > 0:
        by_clock = max(step, round(step * 60 * merged.trainer.max_time / seconds))
        total = by_clock if total is None else min(total, by_clock)
    before = merged.warmup_steps(sizes, total)
    resolved = replace(schedule, warmup_steps=before, warmup_tokens=None, warmup_fraction=None)
    rate = resolved.lr_multiplier(step - 1, total) if total is not None else 1.0
    if step < before or rate < 1.0:
        last = total - int(resolved.decay_steps(total)) if total is not None else before
        where = f"Branch from a checkpoint of the steps {before:,} to {last:,}, where it is constant."
        if before > last:
            where = (
                f"It is constant at no step, as the warm-up takes {before:,} and the decay begins after {last:,}. "
                f"Branch from a run with schedule.warmup_steps={last // 2}, or a longer one."
            )
        raise ConfigError(
            f"branch={config.branch} is at step {step:,}, where the rate is {rate:.3g} of its peak. {where}"
        )
    return before


def cooldown_steps(cooldown: float, step: int) -> int:
    """Return the steps of a decay after `step` steps: `cooldown` of them, or below 1 that part of all in the end."""
    return round(cooldown) if cooldown >= 1.0 else max(1, round(step * cooldown / (1.0 - cooldown)))
