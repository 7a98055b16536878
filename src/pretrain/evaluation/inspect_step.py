"""List the rows that a step of a run read, the documents in them, and their text."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.checkpoint.read import newest
from pretrain.checkpoint.recorded_paths import settings_of
from pretrain.config.run import RunConfig
from pretrain.data.batch_sizes import BatchSizes
from pretrain.data.prepare import prepare, training_rows
from pretrain.errors import CheckpointError, ConfigError
from pretrain.launch.run_folder import CONFIG, saved_settings


@dataclass(frozen=True)
class InspectedPiece:
    """A document in a row, or as much of it as the row holds."""

    document: int  # its number in its store
    name: str  # as its source gave it, such as <file>:<line>
    offset: int  # tokens of the document before the piece
    tokens: int
    text: str
    marked: str  # the text with special tokens in double brackets, [[</s>]]: a text that spells one has none


@dataclass(frozen=True)
class InspectedRow:
    """A row of a step."""

    sample: int  # its place in the stream of all rows
    id: str  # the same in every epoch; of a mixture <source>:<row>
    excluded: bool  # it was to blame for a spike, and has no targets any more
    pieces: list[InspectedPiece]


def rows_of_step(run_folder: str | Path, step: int) -> Iterator[InspectedRow]:
    """Yield the rows of the step-th step of a run (from 1 on), in the order of the stream, as its ledger lists them.

    They are worked out anew from the settings of the run; on how many devices it ran makes no difference. Raises
    CheckpointError where there is no run, ConfigError for a step below 1, or from before the order of rows changed.
    """
    if step < 1:
        raise ConfigError(f"step={step} is below 1, the first step of a run. Try step=1.")
    config, excluded, batch_sizes = _settings(Path(run_folder))
    if (changed := batch_sizes.order_changed_at(step)) is not None:
        raise ConfigError(
            f"step={step} was read in another order: after step {changed} the run went on with another seed, "
            f"model.context_length, data.packing or part of a source. Try step={changed + 1} or later; "
            "ledger.jsonl lists what was read before, where logging.ledger=true."
        )
    prepared = prepare(config.data, config.tokenizer, Path(config.paths.cache_dir), report=lambda text: None)
    stream = training_rows(prepared, config.data, config.model.context_length, config.seed)
    samples = np.arange(batch_sizes.samples(step - 1), batch_sizes.samples(step))
    if stream.is_waiting(int(samples[-1]) + 1):
        raise ConfigError(f"step={step} reads text that is still to come. Try a step that the run has taken.")
    tokenizer = prepared.tokenizer
    for sample, row in zip(samples.tolist(), stream.row_origins(samples), strict=True):
        pieces = [
            InspectedPiece(
                document, name, offset, len(tokens), tokenizer.decode(tokens), tokenizer.decode_marked(tokens)
            )
            for document, name, offset, tokens in row.pieces()
        ]
        yield InspectedRow(sample, row.id, row.id in excluded, pieces)


def _settings(folder: Path) -> tuple[RunConfig, frozenset[str], BatchSizes]:
    """Return the settings of a run, and as far as its newest checkpoint knows: rows left out, batch sizes so far."""
    found, _ = newest(folder)
    if found is not None:
        config = settings_of(found)
        batch_sizes = BatchSizes.saved(found.progress, config.step_size())
        return config, frozenset(found.progress.get("left_out", [])), batch_sizes
    if not os.path.lexists(folder / CONFIG):
        raise CheckpointError(f"run={folder} is not the folder of a run. Try run=auto for the newest one.")
    config = saved_settings(folder)
    return config, frozenset(), config.batch_sizes()
