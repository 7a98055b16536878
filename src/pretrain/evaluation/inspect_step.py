"""List the rows that a run read in a step, with their documents and text."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from pretrain.checkpoint.read import Checkpoint, newest
from pretrain.checkpoint.recorded_paths import settings_of
from pretrain.config.run import RunConfig
from pretrain.config.stages import course_of
from pretrain.data.batch_sizes import BatchSizes
from pretrain.data.collate import IGNORE
from pretrain.data.mixture import own_order
from pretrain.data.prepare import Corpus, Prepared, kept_store, prepare, training_rows
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.launch.resume import saved_sizes
from pretrain.launch.run_folder import CONFIG, saved_settings


@dataclass(frozen=True)
class InspectedPiece:
    """A document in a row, or the part of it that the row holds."""

    document: int  # its index in its store
    name: str  # from its source, such as <file>:<line>
    offset: int  # tokens of the document before the piece
    tokens: int
    text: str
    learned: list[str]  # the runs of tokens with a loss, marked; empty where every token has one
    marked: str  # the text with special tokens in double brackets, [[</s>]], unlike text that spells one


@dataclass(frozen=True)
class InspectedRow:
    """A row of a step."""

    sample: int  # index in the stream of all rows
    id: str  # the same in every epoch; in a mixture <source>:<row>
    excluded: bool  # it caused a spike and has no targets since
    pieces: list[InspectedPiece]


def rows_of_step(run_folder: str | Path, step: int) -> Iterator[InspectedRow]:
    """Yield the rows of a step of a run, counted from 1, in the order of the stream.

    They are computed from the run's settings and do not depend on its number of devices. Raises CheckpointError for a
    folder without a run, ConfigError for a step below 1 or before a change of the order of rows, DataError if the text
    has changed since the run and its tokens are no longer cached.
    """
    if step < 1:
        raise ConfigError(f"step={step} is below 1, the first step of a run. Try step=1.")
    checkpoint, _ = newest(Path(run_folder))
    config, whole, batch_sizes = run_settings(Path(run_folder), checkpoint)
    progress = {} if checkpoint is None else checkpoint.progress
    excluded, stage = frozenset(progress.get("left_out", [])), str(progress.get("order_of", ""))
    if (changed := batch_sizes.order_changed_at(step)) is not None:
        raise ConfigError(
            f"step={step} read rows in another order: after step {changed} another stage began, or the run was resumed "
            f"with another seed, model.context_length, data.packing or part of a source. Try step={changed + 1} or "
            "later; earlier steps "
            "are in ledger.jsonl of a run with logging.ledger=true."
        )
    prepared = _prepared_as_read(config, whole, checkpoint)
    begins = batch_sizes.order_begins(step - 1)
    order = own_order(stage, begins, config.seed) if stage else config.seed
    stream = training_rows(prepared, config.data, config.model.context_length, order)
    samples = np.arange(batch_sizes.samples(step - 1), batch_sizes.samples(step))
    if stream.is_waiting(int(samples[-1]) + 1):
        raise ConfigError(f"step={step} reads text that the stream has not produced yet. Try a step of the past.")
    tokenizer = prepared.tokenizer
    for sample, row in zip(samples.tolist(), stream.row_origins(samples), strict=True):
        annotated = row.stream.store.annotations is not None  # of a mixture, some sources
        targets = row.stream.read(np.array([row.row])).next_tokens[0] if annotated else None
        pieces, begin = list[InspectedPiece](), 0
        for document, name, offset, tokens in row.pieces():
            part = [] if targets is None else targets[begin : begin + len(tokens)].tolist()
            begin += len(tokens)
            learned = [tokenizer.decode_marked(run) for run in _runs(part)]
            text, marked = tokenizer.decode(tokens), tokenizer.decode_marked(tokens)
            pieces.append(InspectedPiece(document, name, offset, len(tokens), text, learned, marked))
        yield InspectedRow(sample, row.id, row.id in excluded, pieces)


def _prepared_as_read(config: RunConfig, whole: RunConfig, checkpoint: Checkpoint | None) -> Prepared:
    """Return the tokens that a run read: those of its text, or if that has changed since, those still cached."""
    cache = Path(config.paths.cache_dir)
    recorded = None if checkpoint is None else checkpoint.progress.get("data_fingerprint")
    if checkpoint is not None and (store := kept_store(str(recorded), cache)) is not None:
        tokenizer = Tokenizer.load(checkpoint.tokenizer_folder)
        store.check_tokenizer(tokenizer.fingerprint, tokenizer.vocab_size)
        return Prepared(tokenizer, {"": Corpus(store.folder.parent, store, None)})
    prepared = prepare(config.data, config.tokenizer, cache, lambda text: None, whole.data)
    if recorded not in (None, prepared.fingerprint):
        raise DataError(
            f"the text of the run has changed: it read {str(recorded)[:12]}, which is no longer in "
            f"paths.cache_dir={cache}, and now the text is {prepared.fingerprint[:12]}. Restore the text. The ids of "
            "its rows are in ledger.jsonl of a run with logging.ledger=true."
        )
    return prepared


def _runs(targets: list[int]) -> list[list[int]]:
    """Return the runs of targets between positions without one."""
    runs = groupby(targets, lambda target: target != IGNORE)
    return [list(run) for is_target, run in runs if is_target]


def run_settings(folder: Path, checkpoint: Checkpoint | None) -> tuple[RunConfig, RunConfig, BatchSizes]:
    """Return the settings of a run's newest stage and of the whole run, and the batch sizes of its steps."""
    if checkpoint is not None:
        whole = settings_of(checkpoint, whole_run=True)
        return settings_of(checkpoint), whole, saved_sizes(checkpoint)
    if not os.path.lexists(folder / CONFIG):
        raise CheckpointError(f"run={folder} is not a run folder. Try run=auto, the newest one.")
    config = saved_settings(folder)
    first = course_of(config).stages[0].config
    return first, config, first.batch_sizes()
