"""Stages: named parts of one run, each with an end of its own and settings that differ from those of the run.

What a stage changes are ordinary settings under their names: `stages.long.model.context_length=4096`. The settings of a
stage are those of the run with its changes on top, a `RunConfig` that is checked as any other before anything runs.
Where the borders are is a function of the settings and of the batch sizes so far, so that a resume finds them again.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from pretrain.config.registry import choices, groups
from pretrain.config.run import RunConfig
from pretrain.config.serialize import UnfitError, flat, objects_of, to_dict
from pretrain.config.setting import check_bounds
from pretrain.data.batch_sizes import BatchSizes, StepSize
from pretrain.data.config import DataConfig, Mode
from pretrain.errors import ConfigError, nearest, shown
from pretrain.models.choices import Position
from pretrain.objectives.config import MaskingConfig, ObjectiveConfig
from pretrain.training.config import StageEnd

# What may change inside a run: the shape of the weights and the meaning of the saved state do not depend on it. It is a
# part of what a resume keeps unless `allow_change` names it (launch/resume.py).
MAY_CHANGE = (
    "batch_size", "micro_batch_size", "batch_warmup_tokens", "batch_warmup_rows", "data", "objective",
    "model.context_length", "model.rope_base", "model.rope_base_local", "model.rope_scaling", "model.sliding_window",
    "model.dropout", "model.attention_dropout", "optimizer", "schedule", "divergence", "trainer.gradient_clip_val",
    "trainer.val_check_interval",
)  # fmt: skip
_MAY_NOT = ("data.mode", "objective.labels", "optimizer.kind", "divergence.max_rewinds")  # exceptions to these
_NOT_OF_THE_ROWS = ("prefetch", "max_validation_rows")  # of data: the rows of a step do not depend on them
_OWN_RATE = ("schedule", "optimizer.learning_rate")  # a stage that sets one has its schedule over its own steps
_WARMUPS = ("warmup_steps", "warmup_tokens", "warmup_fraction")
_UNKNOWN_LENGTH = 1 << 40  # stands for a length that is decided later, while the order of the ends is checked


ENDS = tuple(each.name for each in fields(StageEnd))
_EXAMPLES = {"until_steps": 1000, "until_tokens": 1000000, "until_fraction": 0.5}


@dataclass(frozen=True)
class Stage:
    """A part of a run: consecutive steps with the same settings."""

    name: str  # "": a run without stages is one
    number: int  # from 1
    config: RunConfig  # of these steps; it has no stages
    begin: int  # steps of the run before it
    end: int | None  # steps of the run at its end; None: the run ends by the clock
    order: str = ""  # the stage from whose first step on rows are read in an order of their own; "": that of the run
    text: str = ""  # the same for the text itself
    own_schedule: bool = False  # over the steps of the stage, instead of over those of the run


@dataclass(frozen=True)
class Course:
    """All stages of a run, and the batch sizes of all its steps."""

    stages: list[Stage]
    sizes: BatchSizes
    max_steps: int | None  # None: the run ends by the clock or by epochs
    whole: RunConfig  # settings of the run

    def at(self, step: int) -> Stage:
        """Return the stage of a step, from 0; of a step after the run, its last stage."""
        last = next(stage for stage in reversed(self.stages) if stage.end is None or stage.end > stage.begin)
        return next((stage for stage in self.stages if stage.end is None or step < stage.end), last)

    def changes_losses(self, stage: Stage) -> bool:
        """Return whether the losses of a stage are of other rows, or of another objective, than those before it."""
        if stage.number == 1:
            return False
        before = self.stages[stage.number - 2].config
        return (_rows_of(stage.config), stage.config.objective) != (_rows_of(before), before.objective)

    def validates_as_at_start(self, stage: Stage) -> bool:
        """Return whether the validations of a stage are of the rows and targets that the first stage validates."""
        return _validated_by(self.stages[stage.number - 1].config) == _validated_by(self.stages[0].config)

    def span_of_text(self, stage: Stage) -> tuple[int, int | None]:
        """Return the steps of the run before the text of a stage is read, and at its end; None: where the run ends."""
        same = [each for each in self.stages if each.text == stage.text]
        return same[0].begin, same[-1].end

    def is_last(self, stage: Stage) -> bool:
        """Return whether the run ends with this stage."""
        return stage.end is None or self.max_steps is None or stage.end >= self.max_steps


def course_of(config: RunConfig, sizes: BatchSizes | None = None, step: int = 0) -> Course:
    """Return the stages of a run whose first `step` steps had these sizes; those after it follow from the settings.

    A run without stages has one, without a name. Raises ConfigError for an end that is not after the one before.
    """
    if not config.stages:
        planned = config.batch_sizes() if sizes is None else sizes.planned(step, config.step_sizes())
        return Course([Stage("", 1, config, 0, config.max_steps(planned))], planned, config.max_steps(planned), config)
    if sizes is None:
        sizes = BatchSizes.constant(config.step_size())
    stages: list[Stage] = []
    for number, (name, entry) in enumerate(config.stages.items(), start=1):
        stage = _begun(config, name, entry, stages)
        end_of, is_last = StageEnd(**_end_in(entry)), number == len(config.stages)
        if stage.begin >= step or not _is_past(config, end_of, sizes, step):
            since = sizes.tokens(stage.begin) if "batch_warmup_tokens" in entry else 0
            sizes = sizes.planned(max(stage.begin, step), _step_sizes(stage), since)
        end = _end_step(config, end_of, sizes) if end_of.words() else None
        if end is not None and end <= stage.begin and stage.begin >= step:
            before = f"the end of stages.{stages[-1].name}, step {stage.begin:,}" if stages else "the first step"
            raise ConfigError(
                f"stages.{name}.{end_of.words()} is step {end:,}, not after {before}. "
                f"Try a later end, such as stages.{name}.until_steps={2 * stage.begin + 100}."
            )
        stages.append(replace(stage, end=None if is_last else end))
        if is_last:
            _check_last_end(config, name, end_of, end, sizes)
    total = config.max_steps(sizes)
    cut = [replace(each, begin=_least(each.begin, total) or 0, end=_least(each.end, total)) for each in stages]
    return Course(cut, sizes, total, config)


def check_stages(config: RunConfig) -> dict[str, Any]:
    """Return the stages of a run as plain nested data, after a check of all of them.

    Where `resume` is given they are a part of those of the run, and `check_course` follows once both are merged. Raises
    ConfigError for a name, a setting or an end that does not fit, and for settings that no run could have.
    """
    stages = {str(name): _nested(str(name), entry) for name, entry in config.stages.items() if entry is not None}
    for name, entry in stages.items():
        _check_entry(name, entry)
    if not config.resume:
        check_course(_with_stages(config, stages))
    return stages


def check_course(config: RunConfig) -> None:
    """Raise ConfigError for stages of which one has no end or ends too early, and for settings that no run can have."""
    if not config.stages:
        return
    for name in list(config.stages)[:-1]:
        if not StageEnd(**_end_in(config.stages[name])).words():
            raise ConfigError(
                f"stages.{name} has no end, and another stage follows. "
                f"Give one, such as stages.{name}.until_fraction=0.5."
            )
    _check_lengths(config)
    course_of(_of_some_length(config))


def stage_texts(config: RunConfig) -> list[DataConfig]:
    """Return the settings of the text of each stage that reads another text than the stage before it."""
    stages = course_of(_of_some_length(config)).stages if config.stages else []
    return [stage.config.data for stage in stages if stage.text == stage.name]


def stages_of_other_rows(config: RunConfig) -> list[Stage]:
    """Return the stages whose rows differ, by text or packing, from those of the run and of all stages before."""
    seen, found = [_rows_of(config)], list[Stage]()
    for stage in course_of(_of_some_length(config)).stages:
        if _rows_of(stage.config) not in seen:
            seen.append(_rows_of(stage.config))
            found.append(stage)
    return found


def _of_some_length(config: RunConfig) -> RunConfig:
    """Return the settings with a length where a rule decides it once the text is known."""
    if config.trainer.max_steps is not None:
        return config
    trainer = replace(config.trainer, max_steps=_UNKNOWN_LENGTH)
    return _with_stages(replace(config, stages={}, trainer=trainer), config.stages)


def _with_stages(config: RunConfig, stages: dict[str, Any]) -> RunConfig:
    """Return the settings with stages that are plain nested data and not checked again."""
    changed = replace(config, stages={})
    changed.stages = stages
    return changed


def _nested(name: str, entry: Any) -> dict[str, Any]:
    """Return an entry as nested mappings, names with points taken apart."""
    if not re.fullmatch("[A-Za-z0-9_-]+", name):
        raise ConfigError(
            f"stages.{name} is not a name for a stage: letters (a-z, A-Z), digits, _ and - only. "
            f"Try stages.{re.sub('[^A-Za-z0-9_-]+', '_', name)}."
        )
    if not isinstance(entry, dict):
        raise ConfigError(
            f"stages.{name}={shown(entry)} is not a mapping. Try 'stages.{name}={{until_fraction: 0.5}}', and beside "
            "the end the settings that change."
        )
    nested: dict[str, Any] = {}
    for key, value in entry.items():
        _set_nested(nested, name, str(key), value)
    return nested


def _set_nested(nested: dict[str, Any], stage: str, key: str, value: Any) -> None:
    """Set a setting by its name with points, or several by a mapping; raises ConfigError for one set twice."""
    if isinstance(value, dict) and value:
        for below, each in value.items():
            _set_nested(nested, stage, f"{key}.{below}", each)
        return
    *above, last = key.split(".")
    level: Any = nested
    for part in above:
        level = level.setdefault(part, {}) if isinstance(level, dict) else level
    if not isinstance(level, dict) or last in level:
        raise ConfigError(
            f"stages.{stage}.{key}={shown(value)} is set twice, under one name with points and in a mapping. Write it "
            "in one of both."
        )
    level[last] = value


def _end_in(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ENDS if name in entry}


def _check_entry(name: str, entry: dict[str, Any]) -> None:
    """Raise ConfigError for an end that cannot be, and for a setting that a stage cannot change."""
    given = {key: value for key, value in _end_in(entry).items() if value is not None}
    for key, value in given.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())  # not nan, not inf
        if not is_number or (key != "until_fraction" and not is_whole):
            raise ConfigError(
                f"stages.{name}.{key}={shown(value)} is not a {'' if key == 'until_fraction' else 'whole '}number. "
                f"Try stages.{name}.{key}={_EXAMPLES[key]}."
            )
    try:
        check_bounds(StageEnd(**given))
    except ConfigError as error:
        raise ConfigError(str(error).replace("stages.<name>.", f"stages.{name}.")) from error
    if len(given) > 1:
        found = " and ".join(f"stages.{name}.{key}={shown(value)}" for key, value in given.items())
        raise ConfigError(f"{found} give one end in two ways. Give one, such as stages.{name}.until_fraction=0.5.")
    for key, value in _changes(entry):
        if key in groups() and key in MAY_CHANGE:
            kind = difflib.get_close_matches(str(value), choices(key), n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"stages.{name}.{key}={shown(value)} is not a mapping: a stage takes settings, and no presets. "
                f"Try stages.{name}.{key}.kind={kind}, which has the defaults of its kind."
            )
        if _within(key, _MAY_NOT):
            raise ConfigError(
                f"stages.{name}.{key} cannot change inside a run. "
                f"Give it for the whole run: {key.removesuffix('.kind')}={shown(value)}."
            )
        if not _within(key, MAY_CHANGE):
            known = ", ".join(each for each in MAY_CHANGE)
            raise ConfigError(
                f"stages.{name}.{key} cannot change inside a run. {nearest(key, [*MAY_CHANGE, *ENDS])} "
                f"A stage may change {known}."
            )


def _changes(entry: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings that a stage changes, by full name."""
    return flat({key: value for key, value in entry.items() if key not in ENDS})


def changes_of(config: RunConfig, stage: str) -> list[tuple[str, Any]]:
    """Return the settings that a stage changes with their values, by full name."""
    return list(_changes(config.stages[stage]))


def _within(key: str, names: tuple[str, ...]) -> bool:
    return any(f"{key}.".startswith(f"{name}.") for name in names)


def _check_lengths(config: RunConfig) -> None:
    """Raise ConfigError for a length of the run that borders cannot be counted by."""
    trainer, names = config.trainer, list(config.stages)
    if trainer.max_epochs is not None:
        raise ConfigError(
            f"trainer.max_epochs={trainer.max_epochs:g} counts passes over rows, and with stages "
            f"({', '.join(names)}) rows may change. Try trainer.max_steps=1000 or trainer.max_tokens=1000000."
        )
    by_share = [name for name, entry in config.stages.items() if entry.get("until_fraction") is not None]
    if by_share and trainer.max_steps == -1 and trainer.max_tokens is None:
        raise ConfigError(
            f"stages.{by_share[0]}.until_fraction={config.stages[by_share[0]]['until_fraction']:g} is a part of a run "
            f"that ends by the clock. Try stages.{by_share[0]}.until_steps=1000, or trainer.max_steps=1000."
        )


def _begun(config: RunConfig, name: str, entry: dict[str, Any], before: list[Stage]) -> Stage:
    """Return a stage that begins where the one before ends, without an end of its own."""
    settings = effective(config, name, entry)
    own = [key for key, _ in _changes(entry) if _within(key, _OWN_RATE)]
    stage = Stage(name, len(before) + 1, settings, before[-1].end or 0 if before else 0, None, own_schedule=bool(own))
    if not before:
        return stage
    earlier = before[-1]
    order = earlier.order if _rows_of(settings) == _rows_of(earlier.config) else name
    text = earlier.text if _text_of(settings) == _text_of(earlier.config) else name
    if order == name and settings.data.mode is Mode.stream:
        raise ConfigError(
            f"stages.{name} changes the rows (model.context_length or data), and data.mode=stream reads its text while "
            "it trains, once. Try data.mode=prepare."
        )
    return replace(stage, order=order, text=text)


def effective(config: RunConfig, name: str, entry: dict[str, Any]) -> RunConfig:
    """Return the settings of a stage: those of the run with its changes on top, checked as those of a run.

    A group of another `kind` has that kind's defaults. A stage with a schedule or a rate of its own has no warm-up
    unless it sets one.
    """
    everything = to_dict(config) | {"stages": {}}
    record = {each.name: everything[each.name] for each in fields(RunConfig)}  # of a plan, without the plan's own
    changes = {key: value for key, value in entry.items() if key not in ENDS}
    for key, value in changes.items():
        record[key] = _over(record[key], value)
    own = [key for key, _ in _changes(entry) if _within(key, _OWN_RATE)]
    if own and not any(each in changes.get("schedule", {}) for each in _WARMUPS):
        record["schedule"] |= {"warmup_steps": 0, "warmup_tokens": None, "warmup_fraction": None}
    try:
        settings: RunConfig = objects_of(record, RunConfig)
    except UnfitError as error:
        value = dict(flat(changes)).get(error.key)
        raise ConfigError(f"stages.{name}.{error.key}={shown(value)} does not fit: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"in stages.{name}: {error}") from error
    _check_same_model(config, settings, name)
    return settings


def _over(below: Any, value: Any) -> Any:
    """Return a value with changes on top of what is below; a group of another kind replaces it."""
    if not isinstance(below, dict) or not isinstance(value, dict):
        return value
    if value.get("kind", below.get("kind")) != below.get("kind"):
        return value
    return below | {key: _over(below.get(key), each) for key, each in value.items()}


def _check_same_model(config: RunConfig, settings: RunConfig, name: str) -> None:
    """Raise ConfigError where the weights of the run do not fit the settings of a stage."""
    ours, theirs = config.objective, settings.objective
    if ours.causal != theirs.causal or (ours.n_labels is None) != (theirs.n_labels is None):
        raise ConfigError(
            f"stages.{name}.objective.kind={theirs.kind} attends in another direction than objective={ours.kind}, or "
            "predicts something else. Train it as another run: init_from=<run>."
        )
    length, shape = settings.model.context_length, settings.model.transformer
    if length != config.model.context_length and shape is not None and shape.position is Position.learned:
        raise ConfigError(
            f"stages.{name}.model.context_length={length} needs positions that model.position=learned has no weights "
            "for. Try model.position=rope."
        )


def _rows_of(config: RunConfig) -> tuple[int, dict[str, Any]]:
    """Return what decides the rows that are read, but for the seed."""
    data = {key: value for key, value in to_dict(config)["data"].items() if key not in _NOT_OF_THE_ROWS}
    return config.model.context_length, data


def _validated_by(config: RunConfig) -> tuple[Any, ObjectiveConfig]:
    """Return what decides the losses of a validation: its rows, and the objective with the masks of validations."""
    objective = config.objective
    if isinstance(objective, MaskingConfig) and objective.validation_mask_probability is not None:
        objective = replace(objective, mask_probability=objective.validation_mask_probability)
    return _rows_of(config), objective


def _text_of(config: RunConfig) -> dict[str, Any]:
    """Return what decides the text that is read: the rows without their length and shares."""
    data = _rows_of(config)[1]
    sources = data.get("sources")
    if isinstance(sources, dict):
        shares = ("weight", "epochs")
        data["sources"] = {
            name: {key: value for key, value in each.items() if key not in shares} for name, each in sources.items()
        }
    return data


def _step_sizes(stage: Stage) -> list[tuple[int, StepSize]]:
    """Return the sizes of the steps of a stage, with the order of its rows."""
    sizes = stage.config.step_sizes()
    if not stage.order:
        return sizes
    order = hashlib.sha256(f"{sizes[0][1].order} {stage.order}".encode()).hexdigest()[:16]
    return [(tokens, replace(size, order=order)) for tokens, size in sizes]


def _end_step(config: RunConfig, end: StageEnd, sizes: BatchSizes) -> int:
    """Return the step at which a stage ends, if all steps after those planned have the last size."""
    trainer = config.trainer
    if end.until_steps is not None:
        return end.until_steps
    if end.until_tokens is not None:
        return sizes.steps_to(end.until_tokens)
    share = end.until_fraction or 1.0
    if trainer.max_tokens is not None:
        return sizes.steps_to(round(share * trainer.max_tokens))
    return round(share * (trainer.max_steps or 0))


def _is_past(config: RunConfig, end: StageEnd, sizes: BatchSizes, step: int) -> bool:
    """Return whether the first `step` steps reach the end of a stage."""
    if not end.words():
        return False
    if end.until_tokens is not None:
        return sizes.tokens(step) >= end.until_tokens
    if end.until_fraction is not None and config.trainer.max_tokens is not None:
        return sizes.tokens(step) >= round(end.until_fraction * config.trainer.max_tokens)
    return _end_step(config, end, sizes) <= step


def _check_last_end(config: RunConfig, name: str, end: StageEnd, step: int | None, sizes: BatchSizes) -> None:
    """Raise ConfigError if the last stage ends before the run does."""
    total = config.max_steps(sizes)
    if step is not None and config.trainer.max_steps != _UNKNOWN_LENGTH and (total is None or step < total):
        until = "by the clock" if total is None else f"at step {total:,}"
        raise ConfigError(
            f"stages.{name}.{end.words()} is step {step:,}, and the run ends {until}: the steps between have no stage. "
            f"Leave the end of the last stage out, add a stage, or try trainer.max_steps={step}."
        )


def _least(one: int | None, other: int | None) -> int | None:
    known = [each for each in (one, other) if each is not None]
    return min(known, default=None)
