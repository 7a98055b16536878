"""Startup summary and warnings of a run, logged before its first step."""

import math
import os
from collections.abc import Mapping
from dataclasses import replace

import torch

from pretrain.checkpoint.read import Checkpoint
from pretrain.config.run import RunConfig
from pretrain.config.stages import Course, Stage
from pretrain.data.batch_sizes import BatchSizes
from pretrain.errors import ConfigError
from pretrain.interop.families import FAMILIES
from pretrain.interop.family import choose_family
from pretrain.interop.width_factors import standard_shape
from pretrain.kernels.device import device_name
from pretrain.models.interface import LanguageModule
from pretrain.models.lora import adapted, trainable
from pretrain.planning.scaling import data_warnings, source_warnings
from pretrain.training.datamodule import TextDataModule
from pretrain.training.fine_tuning import excluded_pairs, truncated_documents
from pretrain.training.run_length import RunLength, course_from, run_length, schedule_of
from pretrain.training.validation import validation_warnings

COMPILE_NOTICE = "; the first step and the first validation wait for the compiler, up to a few minutes"


def startup_summary(length: RunLength, model: LanguageModule, data: TextDataModule, device: torch.device) -> str:
    """Return one line: model, machine, length of the run and its data; with adapters a second one about them.

    One more says so if the model, once it is trained, cannot be exported.
    Of a run with stages, the length is that of the stage that begins.
    """
    stage = length.stage
    assert stage is not None
    config = stage.config
    parameters, stream = sum(parameter.numel() for parameter in model.parameters()), data.train_stream
    name = device_name(device)
    threads = f", {torch.get_num_threads()} threads of {os.cpu_count()}" if device.type == "cpu" else ""
    ranks = config.trainer.ranks
    strategy = f" by {ranks} processes ({config.trainer.strategy.name})" if ranks > 1 else ""
    shares = ", ".join(f"{name} {float(share):.1%}" for name, share in stream.shares.items() if name)
    return (
        f"training {config.name or 'a model'} ({parameters:,} parameters, {config.objective.kind}) on {device.type} "
        f"({name}{threads}) in {config.trainer.precision.name}{strategy}: "
        f"{_steps_of(stage, length)} of {config.batch_size} rows x {config.model.context_length} tokens, "
        f"{sum(stream.tokens().values()):,} tokens of data"
        + (" so far" if stream.is_open() else "")
        + (f" ({shares})" if shares else _passes(length, data))
        + (COMPILE_NOTICE if config.parallel.compile else "")
        + (f"\n{_adapters(config, model)}" if config.lora.is_on else "")
        + (f"\nexport is not possible: {reason}" if (reason := _why_not_exported(config)) and not stage.begin else "")
    )


def _why_not_exported(config: RunConfig) -> str:
    """Return why no architecture of transformers computes a pre-trained model; empty if one does, or for others."""
    shape = config.model.transformer
    if shape is None or config.data.annotated:
        return ""
    try:
        choose_family(standard_shape(shape), config.objective.causal, FAMILIES)
    except ConfigError as error:
        return str(error)
    return ""


def _steps_of(stage: Stage, length: RunLength) -> str:
    """Return the length of the run; of one with stages, the steps of the stage that begins."""
    if not stage.name:
        return str(length)
    last = f"to {stage.end:,}" if stage.end is not None else "on"
    return f"stage {stage.name}, steps {stage.begin + 1:,} {last} of {length},"


def _adapters(config: RunConfig, model: LanguageModule) -> str:
    """Return one line: how much is trained with adapters, and the memory of gradients and optimizer state."""
    names, trained = dict(model.named_parameters()), trainable(model)
    total = sum(parameter.numel() for parameter in names.values())
    state = 4 * (trained + config.optimizer.state_numbers(model))
    full = state * (total - trained) / trained
    return (
        f"lora: {trained:,} parameters are trained, {trained / total:.2%} of {total:,}: adapters of rank "
        f"{config.lora.rank} of {len(adapted(names))} matrices; gradients and optimizer state take "
        f"{state / 2**20:,.1f} MiB instead of {full / 2**20:,.1f}"
    )


def _passes(length: RunLength, data: TextDataModule) -> str:
    """Return how often the run reads its training text; empty where that is unknown."""
    if length.max_steps is None or not data.rows_per_epoch:
        return ""
    at_most = "" if length.max_seconds is None else "at most "
    passes = data.batch_sizes.samples(length.max_steps) / data.rows_per_epoch
    return f", read {at_most}{passes:.2f} times"


def startup_warnings(
    config: RunConfig, model: LanguageModule, data: TextDataModule, without_validation: Mapping[str, str],
    steps_of_text: tuple[int, int | None] = (0, None),
) -> list[str]:  # fmt: skip
    """Return warnings about data, warm-up and validation; fewer while a streamed corpus is still being read.

    `without_validation` is the result of `not_validated`; `steps_of_text` are the steps of the run before its text is
    read, as other stages read another, and at its end, None: the run's.
    """
    steps = config.max_steps(data.batch_sizes, data.rows_per_epoch)
    warmup = config.warmup_steps(data.batch_sizes, steps)
    warnings = []
    fine_tunes = config.data.annotated  # few data and many epochs are usual
    if not data.train_stream.is_open() and not fine_tunes:
        begin, of_text = steps_of_text
        end = min((each for each in (steps, of_text) if each is not None), default=begin)  # unknown by the clock
        rows, planned = data.batch_sizes.samples(end), data.batch_sizes.tokens(end) - data.batch_sizes.tokens(begin)
        tokens = data.train_stream.tokens()
        epochs = {name: times for name, times in data.train_stream.epochs(rows).items() if name}
        parameters = sum(p.numel() for p in model.parameters())
        warnings += data_warnings(parameters, sum(tokens.values()), planned)
        warnings += source_warnings(epochs, tokens)
    if steps is not None and warmup >= steps:
        warnings.append(f"the warm-up takes {warmup:,} steps and the run {steps:,}: the learning rate never decays.")
    elif steps is not None and (shortened := replace(config.schedule, warmup_steps=warmup).shortened_decay(steps)):
        warnings.append(shortened)
    warnings += excluded_pairs(data) + truncated_documents(data)
    return warnings + validation_warnings(without_validation, data.validation_streams)


def rate_change(resumed: Checkpoint, length: RunLength, batch_sizes: BatchSizes) -> str | None:
    """Return one line with both learning rates if new settings change that of a resumed run's next step.

    A longer run is at an earlier point of its schedule. `length` and `batch_sizes` follow from the new settings. None
    if the rate is the same, and where a stage begins.
    """
    step, stage = resumed.step, length.stage
    assert stage is not None
    config = stage.config
    if stage.name and step == stage.begin:
        return None  # a stage may have another rate
    course = course_from(resumed.whole_config(), resumed)
    saved_length = run_length(course.at(step), length.seconds, course.sizes, length.rows_per_epoch)
    expected, after = _rate(saved_length, course.sizes, step), _rate(length, batch_sizes, step)
    if math.isclose(expected, after, rel_tol=1e-9, abs_tol=1e-15):
        return None
    reason = "its settings have changed"
    if str(saved_length) != str(length):
        reason = f"schedule={config.schedule.kind} ran over {saved_length} before, and over {length} from here on"
    before = _rate(saved_length, course.sizes, max(0, step - 1))
    if math.isclose(before, after, rel_tol=1e-3):
        return None  # a run whose rate had not decayed yet is made longer
    return f"the learning rate goes from {before:.3g} at step {step:,} to {after:.3g} at step {step + 1:,}: {reason}."


def _rate(length: RunLength, batch_sizes: BatchSizes, step: int) -> float:
    """Return the learning rate of a step (from 0)."""
    assert length.stage is not None
    multiplier = schedule_of(length, batch_sizes).lr_multiplier(*length.position(step))
    return length.stage.config.optimizer.learning_rate * multiplier


def stages_table(course: Course, start: int) -> list[str]:
    """Return the lines of a table of the stages of a run that starts at step `start`; [] for a run without."""
    if not course.stages[0].name:
        return []
    rows = [["stage", "steps", "tokens", "rows x length", "rate", ""]]
    for stage in course.stages:
        config, sizes, end = stage.config, course.sizes, stage.end
        steps = "until the run ends" if end is None else f"{stage.begin + 1:,} to {end:,}"
        tokens = "" if end is None else f"{sizes.tokens(end) - sizes.tokens(stage.begin):,}"
        rate = f"{config.optimizer.learning_rate:g}, {config.schedule.kind}{' of its own' * stage.own_schedule}"
        remark = "now" if stage is course.at(start) and start else ""
        if end is not None and end <= max(start, stage.begin):
            steps, remark = ("-", "not reached") if end <= stage.begin else (steps, "done")
        rows.append([stage.name, steps, tokens, f"{config.batch_size} x {config.model.context_length:,}", rate, remark])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
