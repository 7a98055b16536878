"""Who read a document: token stores by its name, runs with their steps, checkpoints since then, and exported models.

The rows of a step are a pure function of the settings, so the steps are exact, however often a run was resumed.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pretrain.checkpoint.read import Checkpoint, newest, runs_below, step_folders
from pretrain.config.run import RunConfig
from pretrain.data.batch_sizes import BatchSizes
from pretrain.data.curation.forget import Found
from pretrain.data.mixture import MixtureDataset, mixture_dataset, own_order
from pretrain.data.prepare import find_prepared, kept_store, training_rows
from pretrain.data.streaming.dataset import StreamingDataset
from pretrain.data.token_store.store import Store
from pretrain.data.train_stream import ShuffledRows
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.evaluation.inspect_step import run_settings
from pretrain.files.untrusted_files import open_regular

CHUNK = 1 << 16  # rows or samples that are looked at together
MAX_CARD_BYTES = 1 << 20
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class HeldStore:
    """A token store that holds documents that are looked for."""

    corpus: Path  # the folder of all stores of its source
    store: Store
    documents: Ints  # their indices, sorted


@dataclass(frozen=True)
class Reader:
    """A run that trained on the documents, or may have."""

    run: Path
    steps: list[int] = field(default_factory=list)  # from 1, sorted
    unknown: str = ""  # which steps could not be searched, and why
    checkpoints: list[str] = field(default_factory=list)  # at or after the first of those steps
    exports: list[Path] = field(default_factory=list)


def stores_that_hold(ids: frozenset[str], cache: Path, exports: Sequence[Path] = ()) -> list[HeldStore]:
    """Return the token stores with documents of these names, of the cache and below `exports`.

    Damaged ones are passed over.
    """
    found = []
    copies = [path for folder in (cache / "remote" / "stores", *exports) for path in folder.glob("**/shards")]
    for path in sorted({*(cache / "stores").glob("*/**/shards"), *copies}):
        try:
            store = Store(path.parent)
            held = [number for number in range(store.n_documents) if store.document_name(number) in ids]
        except DataError:
            continue
        if held:
            inside = path.is_relative_to(cache / "stores")
            corpus = cache / "stores" / path.relative_to(cache / "stores").parts[0] if inside else path.parents[1]
            found.append(HeldStore(corpus, store, np.array(held, np.int64)))
    return found


def readers(
    corpora: frozenset[str], stores: Sequence[HeldStore], roots: Sequence[Path], cache: Path
) -> Iterator[Reader]:
    """Yield the runs below `roots` that read the documents of `stores` in a training step, or may have.

    A run whose tokens are gone may have if it read a corpus with one of the fingerprints `corpora`.
    """
    cards = list(_cards(roots))
    for run in sorted({run for root in roots for run in runs_below(root)}):
        checkpoint, _ = newest(run)
        if checkpoint is None or not checkpoint.progress.get("corpora"):
            continue  # it read no curated corpus, or kept nothing of what it read
        try:
            config, whole, sizes = run_settings(run, checkpoint)
            steps, unknown = _steps(checkpoint, (config, whole, sizes), stores, cache)
        except (CheckpointError, ConfigError, DataError) as error:
            steps, unknown = [], f"its settings cannot be read: {error}"
        if not steps and not (unknown and _read_one_of(corpora, checkpoint)):
            continue
        first = steps[0] if steps else 0
        kept = [folder.name for folder in step_folders(run / "checkpoints") if int(folder.name[5:]) >= first]
        fingerprint = str(checkpoint.progress.get("data_fingerprint"))
        exports = [path for path, of, step in cards if of == fingerprint and step >= first]
        yield Reader(run, steps, unknown, kept, exports)


def _read_one_of(corpora: frozenset[str], checkpoint: Checkpoint) -> bool:
    """Return whether a run read one of these corpora, or one whose fingerprint it did not record."""
    read = [corpus.get("fingerprint") for corpus in checkpoint.progress["corpora"].values()]
    return None in read or not corpora.isdisjoint(read)


def _steps(
    checkpoint: Checkpoint,
    settings: tuple[RunConfig, RunConfig, BatchSizes],
    stores: Sequence[HeldStore],
    cache: Path,
) -> tuple[list[int], str]:
    """Return the steps of a run up to its newest checkpoint that read the documents, and what is not known."""
    config, whole, sizes = settings
    last = checkpoint.step
    changed = sizes.order_changed_at(1)
    begin = 0 if changed is None else changed
    stage = str(checkpoint.progress.get("order_of", ""))
    order = own_order(stage, sizes.order_begins(last), config.seed) if stage else config.seed
    recorded = str(checkpoint.progress.get("data_fingerprint"))
    dataset = _dataset((config, whole), recorded, stores, cache, order)
    if isinstance(dataset, str):
        return [], dataset
    samples = _samples(dataset, stores, range(sizes.samples(begin), sizes.samples(last)))
    steps = sorted({sizes.steps_reading(sample + 1) for sample in samples})
    unknown = f"steps 1 to {begin} read rows in another order and were not searched" if begin else ""
    return steps, unknown if steps or stores else ""


def _dataset(
    configs: tuple[RunConfig, RunConfig], recorded: str, stores: Sequence[HeldStore], cache: Path, order: object
) -> "MixtureDataset | StreamingDataset | str":
    """Return the training rows that a run had, even if its corpus has changed since; else why they are not known.

    A single source is found by the fingerprint of its tokens that the run recorded.
    """
    config, whole = configs
    length = config.model.context_length
    for held in stores:
        if held.store.fingerprint == recorded:
            return mixture_dataset({"": held.store}, config.data, length, 0, order)  # type: ignore[arg-type]
    if (kept := kept_store(recorded, cache)) is not None:
        return mixture_dataset({"": kept}, config.data, length, 0, order)  # type: ignore[arg-type]
    try:
        prepared = find_prepared(config.data, config.tokenizer, cache, whole.data)
    except DataError:
        prepared = None
    if prepared is None or prepared.fingerprint != recorded:
        return "its prepared tokens are no longer in paths.cache_dir, so its steps are not known"
    return training_rows(prepared, config.data, length, order)  # type: ignore[arg-type]


def _samples(dataset: MixtureDataset | StreamingDataset, stores: Sequence[HeldStore], wanted: range) -> list[int]:
    """Return the samples whose rows hold a piece of the documents."""
    by_folder = {held.store.folder.resolve(): held.documents for held in stores}
    rows: dict[Path, Ints] = {}

    def rows_of(stream: ShuffledRows) -> Ints:
        folder = stream.store.folder.resolve()
        if folder not in rows:
            rows[folder] = _rows_with(stream, by_folder.get(folder, np.empty(0, np.int64)))
        return rows[folder]

    found: list[int] = []
    for first in range(wanted.start, wanted.stop, CHUNK):
        samples = np.arange(first, min(first + CHUNK, wanted.stop))
        if isinstance(dataset, MixtureDataset):
            found += _of_mixture(dataset, samples, [rows_of(stream) for stream in dataset.streams.values()])
        else:
            origins = zip(samples.tolist(), dataset.row_origins(samples), strict=True)
            found += [sample for sample, origin in origins if origin.row in rows_of(origin.stream)]
    return found


def _of_mixture(dataset: MixtureDataset, samples: Ints, rows: Sequence[Ints]) -> list[int]:
    streams = list(dataset.streams.values())
    if len(streams) == 1:
        numbers = np.asarray(streams[0].order(samples - dataset.first))
        return samples[np.isin(numbers, rows[0])].tolist()
    sources, indices = dataset.proportions(samples - dataset.first)
    hit = np.zeros(len(samples), bool)
    for number, stream in enumerate(streams):
        own = sources == number
        hit[own] = np.isin(stream.order(indices[own]), rows[number])
    return samples[hit].tolist()


def _rows_with(stream: ShuffledRows, documents: Ints) -> Ints:
    """Return the rows of the plan that hold a piece of these documents."""
    found = [np.empty(0, np.int64)]
    for first in range(0, len(stream.plan), CHUNK) if len(documents) else ():
        rows = np.arange(first, min(first + CHUNK, len(stream.plan)))
        counts, of_pieces, _, _ = stream.plan.pieces(rows)
        found.append(np.unique(np.repeat(rows, counts)[np.isin(of_pieces, documents)]))
    return np.concatenate(found)


def _cards(roots: Iterable[Path]) -> Iterator[tuple[Path, str, int]]:
    """Yield folder, data fingerprint and steps of each exported model below `roots`, by its card."""
    for root in roots:
        for path in sorted(root.glob("**/README.md")):
            try:
                with open_regular(path) as file:
                    card = file.read(MAX_CARD_BYTES).decode("utf8", "replace")
            except (OSError, ValueError):
                continue
            fingerprint = re.search(r"^\| data fingerprint \| (\S+) \|$", card, re.MULTILINE)
            steps = re.search(r"^\| optimizer steps \| ([\d,]+) \|$", card, re.MULTILINE)
            if fingerprint and steps:
                yield path.parent, fingerprint[1], int(steps[1].replace(",", ""))


def lines_of(found: Found, stores: Sequence[HeldStore], read_by: Iterable[Reader]) -> Iterator[str]:
    """Yield what was found, as lines for a terminal."""
    for identity, origin in sorted(found.kept.items()):
        yield f"document    {identity}  {origin}"
    if found.removed:
        yield f"copies      {len(found.removed):,} texts that left the corpus before: they stay out later too"
    for held in stores:
        yield f"tokens      {held.store.folder}: {len(held.documents):,} of them"
    count = 0
    for reader in read_by:
        count += 1
        steps = f"steps {_ranges(reader.steps)}" if reader.steps else "no step that is known"
        yield f"read by     {reader.run}: {steps}{f'; {reader.unknown}' if reader.unknown else ''}"
        yield from (f"  checkpoint {name}" for name in reader.checkpoints)
        yield from (f"  exported   {path}" for path in reader.exports)
    if count:
        yield "weights     do not change: train again without the documents, or from a checkpoint before the first step"
    else:
        yield "read by     no run with a checkpoint below paths.logs_dir"


def _ranges(steps: Sequence[int]) -> str:
    """Return numbers in order as 1, 4-6, 9."""
    parts: list[list[int]] = []
    for step in steps:
        if parts and step == parts[-1][1] + 1:
            parts[-1][1] = step
        else:
            parts.append([step, step])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
