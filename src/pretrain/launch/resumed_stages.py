"""Stages of a resumed run: those that have been trained keep their steps and their settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pretrain.config.run import RunConfig
from pretrain.config.stages import ENDS, changes_of, check_course, course_of
from pretrain.data.batch_sizes import BatchSizes
from pretrain.errors import ConfigError, shown


@dataclass(frozen=True)
class TrainedStages:
    """The stages of the first `step` steps of a run."""

    begins: dict[str, int]  # the steps before each that has taken one, in order; {} for a run without stages
    ends: dict[str, int]  # of those that have ended before the run did: the steps of the run at their end
    sizes: BatchSizes
    step: int


def trained_stages(config: RunConfig, sizes: BatchSizes, step: int) -> TrainedStages:
    """Return the stages of the first `step` steps, which had these sizes, of a run with these settings."""
    if not config.stages:
        return TrainedStages({}, {}, sizes, step)
    course = course_of(config, sizes, step)
    begins = {stage.name: stage.begin for stage in course.stages if stage.begin < step}
    ends = {
        stage.name: stage.end
        for stage in course.stages
        if stage.end is not None and stage.end <= step and not course.is_last(stage)
    }
    return TrainedStages(begins, ends, sizes, step)


def new_and_begun(trained: TrainedStages, before: RunConfig, config: RunConfig) -> list[str]:
    """Return the names of stages that the run did not have, and whose changes would concern steps that are trained."""
    if set(config.stages) <= set(before.stages):
        return []
    check_course(config)
    now = trained_stages(config, trained.sizes, trained.step)
    return [name for name in now.begins if name not in before.stages and changes_of(config, name)]


def keep_ends(trained: TrainedStages, saved: dict[str, Any], merged: dict[str, Any]) -> None:
    """Write the ends of the stages that have ended as steps into both, so that a longer run does not move them.

    Raises ConfigError where `merged` has another end for one of them than `saved`.
    """
    for name, end in trained.ends.items():
        if merged["stages"].get(name) is None:  # left out: a change of its settings, which is refused
            continue
        before, now = ({key: each["stages"][name].get(key) for key in ENDS} for each in (saved, merged))
        if before != now and now != dict.fromkeys(ENDS) | {"until_steps": end}:
            typed = next(f"{key}={shown(value)}" for key, value in now.items() if value != before[key])
            raise ConfigError(
                f"stages.{name}.{typed} moves the end of a stage that ended at step {end:,} of the resumed run. Try "
                f"stages.{name}.until_steps={end}, or start anew with init_from=<run>."
            )
        for record in (saved, merged):
            entry = record["stages"][name]
            record["stages"][name] = {key: entry[key] for key in entry if key not in ENDS} | {"until_steps": end}


def check_trained(trained: TrainedStages, config: RunConfig) -> None:
    """Raise ConfigError where the steps of a resumed run would belong to other stages than those that trained them."""
    check_course(config)
    if not trained.begins or trained_stages(config, trained.sizes, trained.step).begins == trained.begins:
        return
    name, begin = list(trained.begins.items())[-1]
    raise ConfigError(
        f"by these ends of stages, a stage would have trained steps of the resumed run that another one did: "
        f"stages.{name} trained the steps {begin + 1:,} to {trained.step:,}. Try "
        f"stages.{name}.until_steps={trained.step}, or a later end."
    )
