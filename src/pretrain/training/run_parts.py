"""What a run is made of, built in reading order: text, model, module, trainer, state, callbacks."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from pretrain.config.run import RunConfig
from pretrain.config.serialize import to_dict
from pretrain.config.stages import Course, Stage
from pretrain.data.mixture import OwnOrder, own_order
from pretrain.data.prepare import Prepared, prepare
from pretrain.data.streaming.dataset import ALL, StreamingDataset
from pretrain.data.streaming.read_ahead import ReadAhead, ReadAheadJob
from pretrain.data.train_stream import bits_per_byte_of_a_nat
from pretrain.errors import ConfigError, DataError
from pretrain.interop.load import build_without_weights
from pretrain.kernels.device import peak_flops_per_s, sum_dtype
from pretrain.launch.branch import begins
from pretrain.launch.rank import log
from pretrain.launch.run_folder import CHECKPOINTS, LEDGER, PROFILE, TABLE
from pretrain.launch.run_plan import RunPlan, prepare_text
from pretrain.models.interface import LanguageModule
from pretrain.models.lora import add_adapters, is_adapter
from pretrain.models.size import training_flops_per_token
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.device import choose_device
from pretrain.parallel.precision import half_dtype
from pretrain.training.auto_settings import resolve_precision
from pretrain.training.callbacks.checkpoints import Checkpoints
from pretrain.training.callbacks.garbage import Garbage
from pretrain.training.callbacks.ledger import Ledger
from pretrain.training.callbacks.metrics import Metrics, Norms
from pretrain.training.callbacks.profile import Profile
from pretrain.training.callbacks.progress import Progress
from pretrain.training.callbacks.sample_prompts import SamplePrompt, prompts_of
from pretrain.training.callbacks.samples import Samples, Writer
from pretrain.training.callbacks.scores import Scores, check_scored
from pretrain.training.callbacks.system_metrics import SystemMetrics
from pretrain.training.callbacks.text_ahead import TextAhead
from pretrain.training.config import SampleConfig
from pretrain.training.datamodule import TextDataModule
from pretrain.training.divergence import Spikes
from pretrain.training.fine_tuning import freeze_unused, trained_head, with_labels
from pretrain.training.initial_weights import fixed_facts, initial_weights, materializer
from pretrain.training.lightning_module import StepSettings, TrainingModule
from pretrain.training.loggers.csv_table import has_figures
from pretrain.training.loggers.run_log import close, ids_of
from pretrain.training.loss_scaler import build_loss_scaler
from pretrain.training.model_support import check_supported
from pretrain.training.run_length import course_from, run_length, schedule_of
from pretrain.training.run_state import (
    RunState,
    SaveSettings,
    check_disk_space,
    keep_own_signal_handlers,
    let_micro_batches_run,
    saved_numbers,
)
from pretrain.training.throughput import Throughput
from pretrain.training.trainer import build_trainer, open_loggers
from pretrain.training.user_callbacks import UserCallbacks, build_user_callbacks, check_callbacks, run_facts
from pretrain.training.validation import check_first_validation, not_validated
from pretrain.training.validation_metrics import ValidationScores
from pretrain.training.weight_average import build_average


@dataclass(frozen=True)
class StageText:
    """The stage that a run is in, with its text ready to be read; a run without stages is one."""

    run_plan: RunPlan  # with the settings of the stage
    whole: RunConfig  # settings of the whole run, without the labels that its text has
    device: torch.device
    course: Course
    stage: Stage
    prepared: Prepared
    data: TextDataModule
    without_validation: dict[str, str]  # the reason for each source that has none

    @property
    def config(self) -> RunConfig:
        return self.run_plan.config

    @property
    def validates(self) -> bool:
        return bool(self.data.validation_streams)


@dataclass(frozen=True)
class RunParts:
    """The objects of a run that train its model, as `build_parts` has built them."""

    text: StageText
    trainer: L.Trainer
    module: TrainingModule
    metrics: Metrics
    state: RunState
    writer: Writer
    checkpoints: Checkpoints
    user_callbacks: UserCallbacks

    @property
    def run_plan(self) -> RunPlan:
        return self.text.run_plan

    @property
    def config(self) -> RunConfig:
        return self.text.config

    @property
    def data(self) -> TextDataModule:
        return self.text.data

    @property
    def model(self) -> LanguageModule:
        return self.module.model_with_loss.model

    @property
    def throughput(self) -> Throughput:
        return self.metrics.throughput


def open_stage(run_plan: RunPlan) -> StageText:
    """Return the stage that the run starts in, with its text prepared, here or by the launcher before.

    Raises ConfigError and DataError for a text that cannot be read or validated as the settings ask.
    """
    device, start = choose_device(run_plan.config.trainer), run_plan.start
    whole = resolve_precision(run_plan.config, device)
    if whole.stages and whole.trainer.ranks == 1 and not run_plan.goes_on:  # else the launcher has done it
        prepare_text(whole)
    course = course_from(whole, run_plan.resumed)
    stage = course.at(start)
    prepared = prepare(stage.config.data, stage.config.tokenizer, Path(whole.paths.cache_dir), log, whole.data)
    order = _order(stage, course, start)
    config = with_labels(stage.config, prepared)
    run_plan = replace(run_plan, config=config, whole=whole if whole.stages else None)
    objective = config.objective.build(prepared.tokenizer, config.seed)
    data = TextDataModule(config, prepared, objective, course.sizes, order)
    data.excluded = run_plan.excluded
    reasons = not_validated(config.data, prepared, data.validation_streams)
    text = StageText(run_plan, whole, device, course, replace(stage, config=config), prepared, data, reasons)
    if not start:
        check_first_validation(config, reasons, text.validates)
    return text


def build_parts(text: StageText, throughput: Throughput, ending: ExitStack) -> RunParts:
    """Return the model, what trains it and what watches it, in the state of the checkpoint that the run resumes from.

    `ending` gets what ends the run at the services of its loggers. Raises a PretrainError if the model cannot be
    trained so, or the checkpoint does not fit.
    """
    run_plan, config, prepared = text.run_plan, text.config, text.prepared
    module = _build_module(text, _build_model(text))
    loggers = open_loggers(run_plan)
    ending.push(lambda kind, *_: close(loggers.values(), failed=kind is not None))
    trainer = build_trainer(run_plan, text.device, list(loggers.values()), module.length.last_step, text.validates)
    keep_own_signal_handlers(trainer)
    let_micro_batches_run(trainer)
    vocabulary = config.model.vocabulary(prepared.tokenizer.vocab_size)
    flops = flops_per_token(config, vocabulary, module.model_with_loss.model)
    metrics = build_metrics(run_plan, throughput, flops, text.device)
    state = RunState(trainer, module, metrics, text.data, _save_settings(text, module.model_with_loss.model))
    state.load(run_plan.resumed)
    prompts = prompts_of(prepared, config.objective, config.model.context_length)
    writer = Writer(config, prepared.tokenizer, prompts)
    checkpoints = Checkpoints(state, throughput, config.checkpoint.every_n_steps)
    user_callbacks = _build_user_callbacks(text, prompts, checkpoints)
    _forget_other_losses(module.spikes, user_callbacks, text.course, run_plan.start)
    if begins(config, run_plan.resumed):  # its decay has yet to begin
        user_callbacks.forgets_losses = True
    state.add_user_callbacks(user_callbacks)
    state.logger_ids = lambda: ids_of(loggers)
    return RunParts(text, trainer, module, metrics, state, writer, checkpoints, user_callbacks)


def _order(stage: Stage, course: Course, start: int) -> OwnOrder | None:
    """Return the order of a stage that reads rows of its own; None where it is that of the run."""
    if not stage.order:
        return None
    return own_order(stage.order, course.sizes.order_begins(max(stage.begin, start)), stage.config.seed)


def _build_model(text: StageText) -> LanguageModule:
    """Return the model without weights; raises ConfigError where it or the disk cannot do what the run asks."""
    config = text.config
    model = build_without_weights(config.model, config.objective, text.prepared.tokenizer)
    add_adapters(model, config.lora, trained_head(config))
    freeze_unused(config, model)
    _check_stages(text, model)
    check_disk_space(text.run_plan.folder, saved_numbers(model, config))
    return model


def _check_stages(text: StageText, model: LanguageModule) -> None:
    """Raise for a stage that the tokenizer, the model or its own text cannot follow, before the first step."""
    for stage in text.course.stages:
        try:
            stage.config.objective.build(text.prepared.tokenizer, stage.config.seed)
            check_supported(stage.config, model)
            if stage.number > text.stage.number:
                _check_later(text, stage)
        except (ConfigError, DataError) as error:
            raise type(error)(f"in stages.{stage.name}: {error}" if stage.name else str(error)) from error


def _check_later(text: StageText, stage: Stage) -> None:
    """Raise ConfigError or DataError for text or examples that a later stage cannot use."""
    config = stage.config
    if config.scores.every_n_steps and config.model.context_length != text.config.model.context_length:
        check_scored(config, text.prepared.tokenizer)
    watched = any(each.monitors_validation for each in config.callbacks.values())
    if stage.text == text.stage.text or not (watched or config.objective.classifier):
        return
    found = prepare(config.data, config.tokenizer, Path(config.paths.cache_dir), log, text.whole.data)
    check_callbacks(config, bool(found.validation))
    if config.objective.classifier and found.labels != text.prepared.labels:
        raise ConfigError(
            f"its training data has the labels {', '.join(found.labels)}, and that of the run has "
            f"{', '.join(text.prepared.labels)}. Give all stages the same labels, or train it as another run: "
            "init_from=<run>."
        )


def _build_module(text: StageText, model: LanguageModule) -> TrainingModule:
    run_plan, config, data, objective = text.run_plan, text.config, text.data, text.data.objective
    weights = initial_weights(run_plan, text.prepared, model, text.stage.text)
    length = run_length(text.stage, run_plan.seconds or 0.0, text.course.sizes, data.rows_per_epoch)
    data.last_step = length.last_step
    model_with_loss = ModelWithLoss(model, objective)
    totals = sum_dtype(text.device)
    factors = {name: bits_per_byte_of_a_nat(rows.store) for name, rows in data.validation_streams.items()}
    validation, of_average = (ValidationScores(objective, factors, config.objective.n_labels, totals) for _ in range(2))
    targets_per_row = objective.targets_per_sequence(config.model.context_length)
    settings = StepSettings(
        optimizer=config.optimizer,
        schedule=schedule_of(length, data.batch_sizes),
        parallel_dims=config.parallel_dims(),
        clip_norm=config.trainer.gradient_clip_val,
        expected_targets=float(targets_per_row * config.batch_size),
        sum_dtype=totals,
        keeps_ledger=config.logging.ledger,
        timeout=timedelta(seconds=config.trainer.timeout_s),
        loss_scaler=build_loss_scaler(config.trainer),
        materialize=materializer(model_with_loss, config, weights),
        uses_graphs=config.parallel.cuda_graphs,
        average=build_average(config, run_plan.resumed, model_with_loss, weights, of_average),
    )
    return TrainingModule(model_with_loss, settings, length, Spikes(config.divergence), validation)


def flops_per_token(config: RunConfig, vocabulary: int, model: LanguageModule) -> float:
    """Return the operations of training per token; `vocabulary` are the ids that the model predicts."""
    share, shape = config.objective.share_of_logits, config.model.transformer
    if config.lora.is_on and shape is not None:
        adapters = sum(each.numel() for name, each in model.named_parameters() if is_adapter(name))
        return config.objective.passes * training_flops_per_token(shape, vocabulary, share, adapters)
    return config.objective.passes * config.model.training_flops_per_token(vocabulary, share)


def build_metrics(run_plan: RunPlan, throughput: Throughput, flops: float, device: torch.device) -> Metrics:
    """Return the metrics of a run that takes `flops` operations a token."""
    config, start = run_plan.config, run_plan.start
    return Metrics(
        throughput,
        every_n_steps=config.trainer.log_every_n_steps,
        flops_per_token=flops,
        peak_flops_per_s=config.trainer.ranks * peak_flops_per_s(device, half_dtype(config.trainer.precision))[0],
        validated_at=start if start and has_figures(run_plan.folder / TABLE, start, "val/") else -1,
    )


def _save_settings(text: StageText, model: LanguageModule) -> SaveSettings:
    run_plan, config, prepared, stage = text.run_plan, text.config, text.prepared, text.stage
    sources = ", ".join(filter(None, prepared.corpora))
    facts = {
        "objective": config.objective.kind,
        "data": f"{config.data.kind} of {sources}" if sources else config.data.kind,
        "parameters": count_parameters(model),
        **fixed_facts(prepared),
        "torch": torch.__version__,
    }
    if provenance := prepared.provenance:
        facts["corpora"] = provenance
    if run_plan.whole is not None:
        facts |= {"stage": stage.name, "text_of": stage.text}
    return SaveSettings(
        folder=run_plan.folder / CHECKPOINTS,
        keep=config.checkpoint.keep,
        asynchronous=config.checkpoint.asynchronous,
        config=to_dict(config),
        whole_run=None if run_plan.whole is None else to_dict(run_plan.whole),
        facts=facts,
        typed=run_plan.typed,
        after=run_plan.after,
        save_tokenizer=prepared.tokenizer.save,
        uploads=run_plan.uploads,
    )


def _forget_other_losses(spikes: Spikes, user_callbacks: UserCallbacks, course: Course, start: int) -> None:
    """Forget the losses so far where a stage with others begins.

    Its own would be a spike, again at each rewind, and might never be better than the best of the stage before.
    """
    stage = course.at(start)
    if start and start == stage.begin and course.changes_losses(stage):
        spikes.losses.clear()
        user_callbacks.forgets_losses = True


def _build_user_callbacks(text: StageText, prompts: list[SamplePrompt], checkpoints: Checkpoints) -> UserCallbacks:
    def make_samples(settings: SampleConfig, tag: str) -> Samples:
        own = Writer(replace(text.config, sample=settings), text.prepared.tokenizer, prompts)
        return Samples(own, checkpoints.throughput, checkpoints, tag)

    facts = replace(run_facts(text.run_plan), make_samples=make_samples)
    return build_user_callbacks(text.config, facts, text.validates)


def build_callbacks(parts: RunParts) -> list[Callback]:
    """Return the run's own callbacks in the order in which the end of a step calls them."""
    config, folder, throughput = parts.config, parts.run_plan.folder, parts.throughput
    checkpoints, named = parts.checkpoints, parts.user_callbacks.callbacks
    writing = [callback for name, callback in named.items() if config.callbacks[name].writes_samples]
    callbacks: list[Callback] = [parts.metrics]
    if config.trainer.enable_progress_bar and not any(each.replaces_progress for each in config.callbacks.values()):
        callbacks.append(Progress(parts.metrics))
    if config.logging.ledger:
        callbacks.append(Ledger(folder / LEDGER, resumed_at=parts.run_plan.start))
    if config.logging.norms:
        callbacks.append(Norms(config.trainer.log_every_n_steps))
    callbacks += [each for each in named.values() if each not in writing]  # a checkpoint counts its step
    callbacks += [checkpoints, Samples(parts.writer, throughput, checkpoints), *writing]
    if config.scores.every_n_steps:
        callbacks.append(Scores(config.scores, parts.writer, throughput, folder, checkpoints))
    if isinstance(parts.data.train_stream, StreamingDataset):
        callbacks.append(_build_text_ahead(parts, parts.data.train_stream, checkpoints))
    if config.trainer.profile_steps:
        callbacks.append(Profile(folder / PROFILE, config.trainer.profile_steps))
    if config.logging.system_every_s:
        callbacks.append(SystemMetrics(config.logging.system_every_s, max(1, config.trainer.devices)))
    return [*callbacks, Garbage(), parts.state]


def _build_text_ahead(parts: RunParts, rows: StreamingDataset, checkpoints: Checkpoints) -> TextAhead:
    config, batch_sizes, stream = parts.config, parts.data.batch_sizes, rows.stream
    steps = config.max_steps(batch_sizes)
    needed = ALL if steps is None else batch_sizes.samples(steps + 1)  # the prefetch thread reads one step ahead
    job = ReadAheadJob(config.data, stream.folder, config.model.context_length, needed, stream.hashed)
    reader = ReadAhead(job)
    return TextAhead(rows, reader, parts.throughput, checkpoints.stop_if_asked, batch_sizes)


def count_parameters(model: LanguageModule) -> int:
    """Return the number of parameters, those of adapters among them."""
    return sum(p.numel() for p in model.parameters())
