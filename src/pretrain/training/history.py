"""Keep history.json of a run folder: each start, the text that it reads, how it ended; then have the report written."""

import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from pretrain.config.stages import Course, Stage, changes_of
from pretrain.data.mixture import MixtureDataset
from pretrain.data.train_stream import ShuffledRows
from pretrain.errors import CheckpointError, PretrainError, shown
from pretrain.launch.rank import log, rank
from pretrain.launch.run_folder import saved_step
from pretrain.launch.run_plan import RunPlan
from pretrain.launch.train_log import log_unseen
from pretrain.reports.history import End, History, Source, StageRecord, Start, read_history, write_history
from pretrain.reports.write import DEADLINE_S, write_outside
from pretrain.stop_signals import CLEAN_UP_S, AskedToStop, cause_of
from pretrain.training.datamodule import TextDataModule
from pretrain.training.report import Report, go_on
from pretrain.training.throughput import Throughput

_LENGTH_BINS = 40


def record_start(
    run_plan: RunPlan, data: TextDataModule, course: Course, parameters: int, found: dict[str, str]
) -> None:
    """Add a start on the environment `found` to the run's record and log, or note its next stage; on rank 0."""
    config, folder = run_plan.config, run_plan.folder
    if not run_plan.goes_on:
        log_unseen("\n".join(f"{name}: {value}" for name, value in found.items()))
    start = Start(run_plan.start, time.time(), _process(), found)
    earlier = _history(folder) if run_plan.start else None  # from step 0 the run is another one
    starts = earlier.starts if earlier else []
    write_history(folder, History(
        name=config.name or "",
        objective=config.objective.kind,
        parameters=parameters,
        row_length=config.model.context_length,
        batch_size=config.batch_size,
        packing=config.data.packing.name,
        typed=run_plan.typed,
        sources=_sources(data),
        starts=starts if run_plan.goes_on and starts else [*starts, start],
        stages=[_stage(each, course) for each in course.stages if each.name],
    ))  # fmt: skip


def _stage(stage: Stage, course: Course) -> StageRecord:
    config, tokens = stage.config, course.sizes.tokens
    return StageRecord(
        name=stage.name,
        begin=stage.begin,
        end=stage.end,
        tokens=None if stage.end is None else tokens(stage.end) - tokens(stage.begin),
        batch_size=config.batch_size,
        row_length=config.model.context_length,
        learning_rate=config.optimizer.learning_rate,
        changes={key: shown(value) for key, value in changes_of(course.whole, stage.name)},
    )


def record_end(
    run_plan: RunPlan, throughput: Throughput, ended: Report | BaseException, named_again: list[str]
) -> None:
    """Write into the record how this process's start of the run ended, and have report.html written; on rank 0.

    Nothing that goes wrong here ends the run: it is a line of warning.
    """
    if rank() > 0:
        return
    folder = run_plan.folder
    history = _history(folder)
    if history is None or not history.starts or history.starts[-1].process != _process() or history.starts[-1].end:
        return  # it failed before it began to train
    end = _end(folder, throughput, ended, named_again)
    try:
        write_history(folder, replace(history, starts=[*history.starts[:-1], replace(history.starts[-1], end=end)]))
    except OSError as error:
        log(f"warning: history.json was not written: {error}", one_line=True)
        return
    if run_plan.config.logging.report:
        deadline_s = DEADLINE_S if end.outcome == "finished" else CLEAN_UP_S / 3  # a signal leaves little time
        if problem := write_outside(folder, deadline_s):
            log(f"warning: report.html was not written: {problem}", one_line=True)


def _history(folder: Path) -> History | None:
    try:
        return read_history(folder)
    except CheckpointError:
        return None  # a new one replaces what is damaged: it is for people to look at, and nothing relies on it


def _end(folder: Path, throughput: Throughput, ended: Report | BaseException, named_again: list[str]) -> End:
    if isinstance(ended, Report):
        outcome, message, step, commands = "finished", ended.ended, ended.steps, ended.commands()
    else:
        asked = cause_of(ended) if not isinstance(ended, PretrainError) else None
        stopped = isinstance(ended, AskedToStop) or asked or getattr(ended, "exit_code", 0) > 128
        outcome, step = "interrupted" if stopped else "failed", saved_step(folder)
        message, commands = str(ended) or type(ended).__name__, go_on(str(folder), named_again)
    return End(
        step=step,
        time=time.time(),
        outcome=outcome,
        message=message,
        training_s=throughput.training_s,
        wall_s=throughput.wall_s(),
        waited_s=dict(throughput.other_s),
        commands=commands,
    )


def _process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _sources(data: TextDataModule) -> list[Source]:
    """Return the training text by source; of a corpus that is read during the run, only what has been read."""
    stream = data.train_stream
    validation = {name: rows.store.n_tokens for name, rows in data.validation_streams.items()}
    if not isinstance(stream, MixtureDataset):
        return [
            Source(name, tokens, float(stream.shares[name]), validation_tokens=validation.get(name, 0))
            for name, tokens in stream.tokens().items()
        ]
    return [
        _source(name, rows, float(stream.shares[name]), validation.get(name, 0))
        for name, rows in stream.streams.items()
    ]


def _source(name: str, rows: ShuffledRows, share: float, validation_tokens: int) -> Source:
    store, plan = rows.store, rows.plan
    lengths = store.document_lengths()
    edges = np.unique(np.geomspace(max(1, lengths.min()), lengths.max() + 1, _LENGTH_BINS + 1).astype(np.int64))
    counts = np.histogram(lengths, edges)[0] if len(edges) > 1 else np.zeros(0, np.int64)
    return Source(
        name=name,
        tokens=store.n_tokens,
        share=share,
        documents=store.n_documents,
        text_bytes=store.text_bytes,
        rows=len(plan),
        pieces=len(plan.documents),
        filled=float(plan.lengths.sum(dtype=np.int64)) / max(1, len(plan) * plan.row_length),
        validation_tokens=validation_tokens,
        length_edges=edges.tolist() if len(edges) > 1 else [],
        length_counts=counts.tolist(),
    )
