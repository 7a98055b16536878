"""A training run: its stages one after another, going back from a divergence, and its report."""

import gc
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from pretrain.checkpoint.read import newest
from pretrain.checkpoint.write import set_aside, sweep
from pretrain.config.run import MAX_SEED
from pretrain.config.serialize import to_dict
from pretrain.errors import DivergenceError
from pretrain.files.atomic_files import delete_drafts
from pretrain.launch.rank import log, rank
from pretrain.launch.run_folder import CHECKPOINTS, saved_step, stopped, storage_errors_of
from pretrain.launch.run_plan import RunPlan
from pretrain.stop_signals import AskedToStop
from pretrain.training.callbacks.checkpoints import late_signals
from pretrain.training.callbacks.scores import Scores
from pretrain.training.divergence import Rewind
from pretrain.training.environment import environment
from pretrain.training.history import record_end, record_start
from pretrain.training.loggers.run_log import log_checkpoint, log_config
from pretrain.training.loggers.tensorboard import compare_by_settings
from pretrain.training.report import Report, check_outcome
from pretrain.training.run_parts import RunParts, build_callbacks, build_parts, count_parameters, open_stage
from pretrain.training.startup_summary import rate_change, stages_table, startup_summary, startup_warnings
from pretrain.training.throughput import Throughput
from pretrain.training.trainer import quiet_lightning
from pretrain.training.uploads import uploaded
from pretrain.training.validation import final_validation, not_validated


def train(run_plan: RunPlan) -> Report:
    """Run the plan, going back to the last checkpoint at each rewind, and return the report.

    All processes of a run rewind together. Raises DivergenceError after more than `divergence.max_rewinds` rewinds.
    """
    throughput = Throughput()
    with uploaded(run_plan) as run_plan:
        try:
            with storage_errors_of(run_plan.folder):
                report = _with_rewinds(run_plan, throughput)
        except BaseException as error:
            record_end(run_plan, throughput, error, _named_again(run_plan))
            raise
        record_end(run_plan, throughput, report, report.named_again)
    return report


def _with_rewinds(run_plan: RunPlan, throughput: Throughput) -> Report:
    max_rewinds = run_plan.config.divergence.max_rewinds
    last = ""
    for _ in range(max_rewinds + 1):
        if last:
            _free_memory()
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
            last = str(rewind)  # the error itself would keep the model and the optimizer it comes from
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
        _free_memory()
        resumed, _ = newest(run_plan.folder)  # the next stage is a resume like any other
        run_plan = replace(run_plan, resumed=resumed, excluded=frozenset(), seconds=None, goes_on=True)


def _free_memory() -> None:
    """Free model and optimizer of the training before: they are in cycles, which reference counts do not free."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _run(run_plan: RunPlan, throughput: Throughput, callbacks: Sequence[Callback], ending: ExitStack) -> Report | None:
    """Run the plan to the end of its stage; return the report, or None if another stage follows.

    `ending` ends the run at the services of its loggers, whatever happens.
    """
    quiet_lightning()
    if rank() == 0:
        _delete_leftovers(run_plan.folder)
    parts = build_parts(open_stage(run_plan), throughput, ending)
    skipped_before = parts.module.skipped_steps
    own_callbacks = build_callbacks(parts)
    parts.trainer.callbacks.extend([*own_callbacks, *callbacks])

    is_done = parts.module.length.is_done(run_plan.start)
    _announce(parts, is_done)
    _seed_everything(parts)
    if parts.trainer.is_global_zero:
        _record_settings(parts)
    if not is_done and _fit(parts):
        return None
    validation = final_validation(parts.trainer, parts.module, parts.data)
    if is_done:
        _score_if_missing(own_callbacks, parts)
    report = _build_report(parts, validation)
    if parts.trainer.is_global_zero:
        report.save()
        log_checkpoint(parts.trainer.loggers, run_plan.folder)
        compare_by_settings(parts.trainer, to_dict(parts.config), validation, run_plan.typed)
    steps, skipped = parts.trainer.global_step - run_plan.start, parts.module.skipped_steps - skipped_before
    check_outcome(steps, skipped, parts.module.skipped_because, validation)
    return report


def _announce(parts: RunParts, is_done: bool) -> None:
    """Print warnings, one line about the run, and a table of its stages."""
    run_plan, data, length, text = parts.run_plan, parts.data, parts.module.length, parts.text
    warnings = [] if run_plan.goes_on else startup_warnings(
        parts.config, parts.model, data, text.without_validation, text.course.span_of_text(text.stage)
    )  # fmt: skip
    if run_plan.resumed and not is_done and (changed := rate_change(run_plan.resumed, length, data.batch_sizes)):
        warnings.append(changed)
    lines = [*(f"warning: {each}" for each in warnings), startup_summary(length, parts.model, data, text.device)]
    for line in lines if run_plan.goes_on else [*lines, *stages_table(text.course, run_plan.start)]:
        log(line)


def _record_settings(parts: RunParts) -> None:
    """Write what the run starts with to its history and to its loggers."""
    found = environment(parts.config, parts.text.device)
    record_start(parts.run_plan, parts.data, parts.text.course, count_parameters(parts.model), found)
    logged = to_dict(parts.text.whole) | {"environment": found}
    log_config(parts.trainer.loggers, logged, yaml.safe_dump(logged, sort_keys=False), parts.run_plan.start)


def _fit(parts: RunParts) -> bool:
    """Train to the end of the stage; return whether another follows."""
    _set_aside_later(parts.run_plan.folder, parts.run_plan.start)
    with closing(parts.data), late_signals(parts.module):
        parts.trainer.fit(parts.module, datamodule=parts.data)
    return parts.module.length.ends_stage(parts.trainer.global_step) and not parts.trainer.should_stop


def _score_if_missing(callbacks: list[Callback], parts: RunParts) -> None:
    for scores in callbacks:
        if isinstance(scores, Scores):
            scores.score_if_missing(parts.trainer, parts.module)


def _delete_leftovers(folder: Path) -> None:
    for path, reason in sweep(folder / CHECKPOINTS).items():
        log(f"warning: {path} is never deleted: {reason}")
    delete_drafts(folder)


def _set_aside_later(folder: Path, start: int) -> None:
    """Set aside checkpoints after the step that the run goes on from: they are of a course that it leaves."""
    moved = set_aside(folder / CHECKPOINTS, start) if rank() == 0 else []
    if moved:
        names = ", ".join(path.name for path in moved)
        log(f"warning: the run goes on from step {start}. Its later checkpoints are set aside, free to delete: {names}")


def _seed_everything(parts: RunParts) -> None:
    """Seed the generators of this process; ranks of one tensor-parallel group draw the same numbers."""
    rank = parts.module.parallel_dims.gradient_rank(parts.trainer.global_rank)
    L.seed_everything((parts.config.seed + rank) % (MAX_SEED + 1), workers=False, verbose=False)


def _build_report(parts: RunParts, validation: dict[str, float]) -> Report:
    config, module, throughput = parts.config, parts.module, parts.throughput
    targets = {name: count for name, count in module.validation_targets.items() if count}
    steps = max(parts.run_plan.start, parts.trainer.global_step)
    is_comparable = parts.text.course.validates_as_at_start(parts.text.stage)
    return Report(
        folder=str(parts.run_plan.folder),
        steps=steps,
        tokens_seen=parts.metrics.tokens_seen,
        parameters=count_parameters(parts.model),
        objective=config.objective.kind,
        validation=validation,
        first_validation=module.first_validated if is_comparable else {},
        tokens_per_s=throughput.mean_tokens_per_s(),
        training_s=throughput.training_s,
        wall_s=throughput.wall_s(),
        waited_s=dict(throughput.other_s),
        checkpoint_s=throughput.checkpoint_s(),
        skipped_steps=module.skipped_steps,
        excluded=sorted(parts.data.excluded),
        sample=parts.writer.sample(parts.model, seed=config.seed),
        longer=_longer(parts, steps),
        not_validated=not_validated(config.data, parts.text.prepared, list(targets)),
        validation_targets=targets,
        named_again=_named_again(parts.run_plan),
        ended=_why_ended(parts),
        chats=any(part.has_messages for part in config.data.parts().values()),
    )


def _longer(parts: RunParts, steps: int) -> str:
    """Return the settings that double the length of the run, whose last stage then ends with it, or its patience."""
    words = [parts.module.length.doubled(steps)]
    for name, stage in list(parts.text.whole.stages.items())[-1:]:
        fixed = [key for key in ("until_steps", "until_tokens") if stage.get(key) is not None]
        words += [f"stages.{name}.{key}=null" for key in fixed]
    return " ".join([*words, *parts.user_callbacks.more_patience()])


def _named_again(run_plan: RunPlan) -> list[str]:
    """Return the overrides without which a resume refuses the run: its plug-ins and the classes of its entries."""
    plugins = run_plan.config.plugins
    classes = [each.replace("=", ".class_path=", 1) for each in sorted(run_plan.classes)]
    return [*([f"plugins=[{','.join(plugins)}]"] if plugins else []), *classes]


def _why_ended(parts: RunParts) -> str:
    """Return why the run has ended before its length; empty if it has not."""
    if not parts.trainer.should_stop:
        return ""
    return parts.user_callbacks.why_stopped() or "a callback asked to stop"
