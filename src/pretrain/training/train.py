"""A training run in reading order: data, model, objective, module, trainer, callbacks, report."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from pretrain.checkpoint.read import newest
from pretrain.checkpoint.write import set_aside, sweep
from pretrain.config.run import MAX_SEED, RunConfig
from pretrain.config.serialize import to_dict
from pretrain.config.stages import Course, Stage
from pretrain.data.mixture import OwnOrder, own_order
from pretrain.data.prepare import Prepared, prepare
from pretrain.data.streaming.dataset import ALL, StreamingDataset
from pretrain.data.streaming.read_ahead import ReadAhead, ReadAheadJob
from pretrain.data.train_stream import bits_per_byte_of_a_nat
from pretrain.errors import DivergenceError
from pretrain.files.atomic_files import delete_drafts
from pretrain.interop.load import LoadParameter, build_without_weights
from pretrain.kernels.device import peak_flops_per_s, sum_dtype
from pretrain.launch.rank import log, rank
from pretrain.launch.run_folder import CHECKPOINTS, LEDGER, PROFILE, TABLE, saved_step, stopped
from pretrain.launch.run_plan import RunPlan, prepare_text
from pretrain.models.interface import LanguageModule
from pretrain.models.lora import add_adapters
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.device import choose_device
from pretrain.parallel.precision import half_dtype
from pretrain.stop_signals import AskedToStop
from pretrain.training.auto_settings import resolve_precision
from pretrain.training.callbacks.checkpoints import Checkpoints, late_signals
from pretrain.training.callbacks.garbage import Garbage
from pretrain.training.callbacks.ledger import Ledger
from pretrain.training.callbacks.metrics import Metrics, Norms
from pretrain.training.callbacks.profile import Profile
from pretrain.training.callbacks.progress import Progress
from pretrain.training.callbacks.sample_prompts import prompts_of
from pretrain.training.callbacks.samples import Samples, Writer
from pretrain.training.callbacks.scores import Scores
from pretrain.training.callbacks.system_metrics import SystemMetrics
from pretrain.training.callbacks.text_ahead import TextAhead
from pretrain.training.config import SampleConfig
from pretrain.training.datamodule import TextDataModule
from pretrain.training.divergence import Rewind, Spikes
from pretrain.training.environment import environment
from pretrain.training.fine_tuning import freeze_unused, trained_head, with_labels
from pretrain.training.history import record_end, record_start
from pretrain.training.initial_weights import fixed_facts, initial_weights, materializer
from pretrain.training.lightning_module import StepSettings, TrainingModule
from pretrain.training.loggers.csv_table import has_figures
from pretrain.training.loggers.run_log import close, ids_of, log_checkpoint, log_config
from pretrain.training.loggers.tensorboard import compare_by_settings
from pretrain.training.loss_scaler import build_loss_scaler
from pretrain.training.model_support import check_supported
from pretrain.training.report import Report, check_outcome
from pretrain.training.run_length import RunLength, course_from, run_length, schedule_of
from pretrain.training.run_state import (
    RunState,
    SaveSettings,
    check_disk_space,
    keep_own_signal_handlers,
    let_micro_batches_run,
    saved_numbers,
)
from pretrain.training.startup_summary import rate_change, stages_table, startup_summary, startup_warnings
from pretrain.training.throughput import Throughput
from pretrain.training.trainer import build_trainer, open_loggers, quiet_lightning
from pretrain.training.uploads import uploaded
from pretrain.training.user_callbacks import UserCallbacks, build_user_callbacks, run_facts
from pretrain.training.validation import check_first_validation, final_validation, not_validated
from pretrain.training.validation_metrics import ValidationScores
from pretrain.training.weight_average import build_average


def train(run_plan: RunPlan) -> Report:
    """Run the plan, going back to the last checkpoint at each rewind, and return the report.

    All processes of a run rewind together. Raises DivergenceError after more than `divergence.max_rewinds` rewinds.
    """
    throughput = Throughput()
    with uploaded(run_plan) as run_plan:
        try:
            report = _with_rewinds(run_plan, throughput)
        except BaseException as error:
            record_end(run_plan, throughput, error, _named_again(run_plan))
            raise
        record_end(run_plan, throughput, report, report.named_again)
    return report


def _with_rewinds(run_plan: RunPlan, throughput: Throughput) -> Report:
    max_rewinds = run_plan.config.divergence.max_rewinds
    for _ in range(max_rewinds + 1):
        start, since = run_plan.start, throughput.position()
        try:
            return run(run_plan, throughput)
        except Rewind as rewind:
            throughput.pause("rewinds")
            resumed, _ = newest(run_plan.folder)
            wasted = rewind.step - (resumed.step if resumed else 0)
            throughput.lose(since, wasted / max(wasted, rewind.step - start), "rewinds")
            run_plan = replace(run_plan, resumed=resumed, excluded=rewind.excluded, seconds=rewind.seconds)
            log(f"{rewind}\nrewinding to {f'step {resumed.step}' if resumed else 'the start'}")
            last = rewind
        except AskedToStop as asked:  # before the first step, after the last, or between two trainings
            raise stopped(asked, saved_step(run_plan.folder)) from None
    raise DivergenceError(
        f"the run has gone back {max_rewinds} times, and now {last}. Look at the data, try a lower "
        f"optimizer.learning_rate, or allow more: divergence.max_rewinds={2 * max_rewinds or 10}."
    )


def run(run_plan: RunPlan, throughput: Throughput | None = None, callbacks: Sequence[Callback] = ()) -> Report:
    """Run the plan once and return the report.

    `throughput` holds the time before a rewind; `callbacks` are any of Lightning's, called after the run's own.
    Raises a PretrainError if the run cannot continue, Rewind if it must go back to a checkpoint.
    """
    throughput = throughput or Throughput()
    while True:
        with ExitStack() as ending:
            report = _run(run_plan, throughput, callbacks, ending)
        if report is not None:
            return report
        throughput.pause("stages")
        resumed, _ = newest(run_plan.folder)  # the next stage is a resume like any other
        run_plan = replace(run_plan, resumed=resumed, excluded=frozenset(), seconds=None, goes_on=True)


def _run(run_plan: RunPlan, throughput: Throughput, callbacks: Sequence[Callback], ending: ExitStack) -> Report | None:
    """Run the plan to the end of its stage; return the report, or None if another stage follows.

    `ending` ends the run at the services of its loggers, whatever happens.
    """
    quiet_lightning()
    folder, resumed, start = run_plan.folder, run_plan.resumed, run_plan.start
    if rank() == 0:
        _delete_leftovers(folder)
    device = choose_device(run_plan.config.trainer)
    whole = resolve_precision(run_plan.config, device)

    if whole.stages and whole.trainer.ranks == 1 and not run_plan.goes_on:  # else the launcher has done it
        prepare_text(whole)
    course = course_from(whole, resumed)
    stage = course.at(start)
    config = stage.config
    prepared = prepare(config.data, config.tokenizer, Path(config.paths.cache_dir), log, whole.data)
    config = with_labels(config, prepared)
    run_plan = replace(run_plan, config=config, whole=whole if whole.stages else None)
    objective = config.objective.build(prepared.tokenizer, config.seed)
    data = TextDataModule(config, prepared, objective, course.sizes, _order(stage, course, start))
    data.excluded = run_plan.excluded
    reasons = not_validated(config.data, prepared, data.validation_streams)
    check_first_validation(config, reasons, bool(data.validation_streams))

    model = build_without_weights(config.model, config.objective, prepared.tokenizer)
    add_adapters(model, config.lora, trained_head(config))
    freeze_unused(config, model)
    check_supported(config, model)
    check_disk_space(folder, saved_numbers(model, config))
    weights = initial_weights(run_plan, prepared, model, stage.text)
    length = run_length(replace(stage, config=config), run_plan.seconds or 0.0, course.sizes, data.rows_per_epoch)
    data.last_step = length.last_step
    module = _build_module(run_plan, data, ModelWithLoss(model, objective), weights, length)

    loggers = open_loggers(run_plan)
    ending.push(lambda kind, *_: close(loggers.values(), failed=kind is not None))
    trainer = build_trainer(run_plan, device, list(loggers.values()), length.last_step, bool(data.validation_streams))
    keep_own_signal_handlers(trainer)
    let_micro_batches_run(trainer)
    vocabulary = config.model.vocabulary(prepared.tokenizer.vocab_size)
    metrics = _build_metrics(run_plan, throughput, vocabulary, device)
    state = RunState(trainer, module, metrics, data, _save_settings(run_plan, prepared, model, stage))
    state.load(resumed)
    _forget_other_losses(module.spikes, course, start)
    prompts = prompts_of(prepared, config.objective, config.model.context_length)
    writer = Writer(config, prepared.tokenizer, prompts)
    checkpoints = Checkpoints(state, throughput, config.checkpoint.every_n_steps)

    def make_samples(settings: SampleConfig, tag: str) -> Samples:
        own = Writer(replace(config, sample=settings), prepared.tokenizer, prompts)
        return Samples(own, throughput, checkpoints, tag)

    facts = replace(run_facts(run_plan), make_samples=make_samples)
    user_callbacks = build_user_callbacks(config, facts, bool(data.validation_streams))
    state.add_user_callbacks(user_callbacks)
    state.logger_ids = lambda: ids_of(loggers)
    skipped_before = module.skipped_steps
    parts = _Parts(run_plan, trainer, module, data, metrics, state, writer, checkpoints, user_callbacks)
    own_callbacks = _build_callbacks(parts)
    trainer.callbacks.extend([*own_callbacks, *callbacks])

    is_done = length.is_done(start)
    warnings = [] if run_plan.goes_on else startup_warnings(config, model, data, reasons)
    if resumed and not is_done and (changed := rate_change(resumed, length, data.batch_sizes)):
        warnings.append(changed)
    lines = [*(f"warning: {warning}" for warning in warnings), startup_summary(length, model, data, device)]
    for line in lines if run_plan.goes_on else [*lines, *stages_table(course, start)]:
        log(line)
    _seed_everything(parts)
    if trainer.is_global_zero:
        record_start(run_plan, data, course, _count(model), found := environment(config, device))
        logged = to_dict(whole) | {"environment": found}
        log_config(trainer.loggers, logged, yaml.safe_dump(logged, sort_keys=False), start)
    if not is_done:
        _set_aside_later(folder, start)
        with closing(data), late_signals(module):
            trainer.fit(module, datamodule=data)
        if length.ends_stage(trainer.global_step) and not trainer.should_stop:
            return None
    validation = final_validation(trainer, module, data)
    _score_if_missing(own_callbacks if is_done else [], trainer, module)
    report = _build_report(parts, prepared, validation)
    if trainer.is_global_zero:
        report.save()
        log_checkpoint(trainer.loggers, folder)
        compare_by_settings(trainer, to_dict(config), validation, run_plan.typed)
    skipped = module.skipped_steps - skipped_before
    check_outcome(trainer.global_step - start, skipped, module.skipped_because, validation)
    return report


@dataclass(frozen=True)
class _Parts:
    """The objects of a run, as `run` has built them."""

    run_plan: RunPlan
    trainer: L.Trainer
    module: TrainingModule
    data: TextDataModule
    metrics: Metrics
    state: RunState
    writer: Writer
    checkpoints: Checkpoints
    user_callbacks: UserCallbacks

    @property
    def config(self) -> RunConfig:
        return self.run_plan.config

    @property
    def throughput(self) -> Throughput:
        return self.metrics.throughput


def _score_if_missing(callbacks: list[Callback], trainer: L.Trainer, module: TrainingModule) -> None:
    for scores in callbacks:
        if isinstance(scores, Scores):
            scores.score_if_missing(trainer, module)


def _delete_leftovers(folder: Path) -> None:
    for path, reason in sweep(folder / CHECKPOINTS).items():
        log(f"warning: {path} is never deleted: {reason}")
    delete_drafts(folder)


def _set_aside_later(folder: Path, start: int) -> None:
    """Set aside checkpoints behind the step that the run goes on from: they are of a course that it leaves."""
    moved = set_aside(folder / CHECKPOINTS, start) if rank() == 0 else []
    if moved:
        names = ", ".join(path.name for path in moved)
        log(f"warning: the run goes on from step {start}. Its later checkpoints are set aside, free to delete: {names}")


def _count(model: LanguageModule) -> int:
    return sum(p.numel() for p in model.parameters())


def _order(stage: Stage, course: Course, start: int) -> OwnOrder | None:
    """Return the order of a stage that reads rows of its own; None where it is that of the run."""
    if not stage.order:
        return None
    return own_order(stage.order, course.sizes.order_begins(max(stage.begin, start)), stage.config.seed)


def _forget_other_losses(spikes: Spikes, course: Course, start: int) -> None:
    """Empty the window of losses where a stage with others begins: its own would be a spike, again at each rewind."""
    stage = course.at(start)
    if start and start == stage.begin and course.changes_losses(stage):
        spikes.losses.clear()


def _build_module(
    run_plan: RunPlan, data: TextDataModule, model_with_loss: ModelWithLoss, weights: LoadParameter, length: RunLength
) -> TrainingModule:
    config, objective = run_plan.config, model_with_loss.objective
    totals = sum_dtype(choose_device(config.trainer))
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


def _build_metrics(run_plan: RunPlan, throughput: Throughput, vocabulary: int, device: torch.device) -> Metrics:
    config, start = run_plan.config, run_plan.start
    return Metrics(
        throughput,
        every_n_steps=config.trainer.log_every_n_steps,
        flops_per_token=config.objective.passes
        * config.model.training_flops_per_token(vocabulary, config.objective.share_of_logits),
        peak_flops_per_s=config.trainer.ranks * peak_flops_per_s(device, half_dtype(config.trainer.precision))[0],
        validated_at=start if start and has_figures(run_plan.folder / TABLE, start, "val/") else -1,
    )


def _save_settings(run_plan: RunPlan, prepared: Prepared, model: LanguageModule, stage: Stage) -> SaveSettings:
    config = run_plan.config
    sources = ", ".join(filter(None, prepared.corpora))
    facts = {
        "objective": config.objective.kind,
        "data": f"{config.data.kind} of {sources}" if sources else config.data.kind,
        "parameters": _count(model),
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


def _build_callbacks(parts: _Parts) -> list[Callback]:
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


def _build_text_ahead(parts: _Parts, rows: StreamingDataset, checkpoints: Checkpoints) -> TextAhead:
    config, batch_sizes, stream = parts.config, parts.data.batch_sizes, rows.stream
    steps = config.max_steps(batch_sizes)
    needed = ALL if steps is None else batch_sizes.samples(steps + 1)  # the prefetch thread reads one step ahead
    job = ReadAheadJob(config.data, stream.folder, config.model.context_length, needed, stream.hashed)
    reader = ReadAhead(job)
    return TextAhead(rows, reader, parts.throughput, checkpoints.stop_if_asked, batch_sizes)


def _seed_everything(parts: _Parts) -> None:
    """Seed the generators of this process; ranks of one tensor-parallel group draw the same numbers."""
    rank = parts.module.parallel_dims.gradient_rank(parts.trainer.global_rank)
    L.seed_everything((parts.config.seed + rank) % (MAX_SEED + 1), workers=False, verbose=False)


def _build_report(parts: _Parts, prepared: Prepared, validation: dict[str, float]) -> Report:
    config, module, throughput = parts.config, parts.module, parts.throughput
    model = module.model_with_loss.model
    targets = {name: count for name, count in module.validation_targets.items() if count}
    steps = max(parts.run_plan.start, parts.trainer.global_step)
    return Report(
        folder=str(parts.run_plan.folder),
        steps=steps,
        tokens_seen=parts.metrics.tokens_seen,
        parameters=_count(model),
        objective=config.objective.kind,
        validation=validation,
        first_validation=module.first_validated,
        tokens_per_s=throughput.mean_tokens_per_s(),
        training_s=throughput.training_s,
        wall_s=throughput.wall_s(),
        waited_s=dict(throughput.other_s),
        checkpoint_s=throughput.checkpoint_s(),
        skipped_steps=module.skipped_steps,
        excluded=sorted(parts.data.excluded),
        sample=parts.writer.sample(model, seed=config.seed),
        longer=module.length.doubled(steps),
        not_validated=not_validated(config.data, prepared, list(targets)),
        validation_targets=targets,
        named_again=_named_again(parts.run_plan),
        ended=_why_ended(parts),
        chats=config.data.kind == "chat",
    )


def _named_again(run_plan: RunPlan) -> list[str]:
    """Return the overrides without which a resume refuses the run: its plug-ins and the classes of its entries."""
    plugins = run_plan.config.plugins
    classes = [each.replace("=", ".class_path=", 1) for each in sorted(run_plan.classes)]
    return [*([f"plugins=[{','.join(plugins)}]"] if plugins else []), *classes]


def _why_ended(parts: _Parts) -> str:
    """Return why the run has ended before its length; empty if it has not."""
    if not parts.trainer.should_stop:
        return ""
    return parts.user_callbacks.why_stopped() or "a callback asked to stop"
