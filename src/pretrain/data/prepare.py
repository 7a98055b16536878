"""Text to token stores, once: stores are cached under the hash of everything that decides their content."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.data.config import CuratedConfig, DataConfig, Mode, TokenizerConfig, errors_of
from pretrain.data.fine_tuning_config import ChatConfig
from pretrain.data.mixture import MixtureDataset, OwnOrder, mixture_dataset
from pretrain.data.progress import Progress
from pretrain.data.sources.prepared_stores import PreparedStores, tokenizer_of
from pretrain.data.sources.remote_corpus import on_this_machine
from pretrain.data.sources.source import Source
from pretrain.data.sources.splits import split_rules
from pretrain.data.streaming.corpus import Stream
from pretrain.data.streaming.dataset import StreamingDataset
from pretrain.data.streaming.ledger import Ledger
from pretrain.data.streaming.producer import STREAM_VERSION, StreamJob, produce
from pretrain.data.token_store.build import Report, with_splits, write_stores
from pretrain.data.token_store.format import read_json, storage_errors
from pretrain.data.token_store.store import Store
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train_bpe import head
from pretrain.data.train_stream import ShuffledRows, validation_rows
from pretrain.errors import ConfigError, DataError, printable
from pretrain.files.untrusted_files import read_text

PREPARE_VERSION = 1  # of the rules that decide a store's content; raise it and older stores are no longer used
OLD_DRAFT_S = 86_400.0  # a process that writes one writes to it more often
_DRAFT = re.compile(r".+-[0-9a-f]{16}\.tmp-\d+")  # its names, by `_key` and the process
_TRAINED = "tokenizer.json"  # exists once the tokenizer is trained
_FINGERPRINT = "fingerprint.txt"  # of the tokenizer in the same folder


@dataclass(frozen=True)
class Corpus:
    """The tokens of one source of text."""

    folder: Path
    train: Store | Stream  # a stream has at least one finished era
    validation: Store | None  # None if data.validation_fraction is 0, or a stream's first era has no such document


@dataclass(frozen=True)
class Prepared:
    """A tokenizer and the corpus of each source by name; a single source is named ""."""

    tokenizer: Tokenizer
    corpora: dict[str, Corpus]

    @property
    def train(self) -> dict[str, Store]:
        """The training documents of each source, unless it is streamed."""
        return {name: corpus.train for name, corpus in self.corpora.items() if isinstance(corpus.train, Store)}

    @property
    def stream(self) -> Stream | None:
        """The corpus that is read while the run trains, or None."""
        return next((corpus.train for corpus in self.corpora.values() if isinstance(corpus.train, Stream)), None)

    @property
    def validation(self) -> dict[str, Store]:
        """The validation documents of each source with any."""
        return {name: corpus.validation for name, corpus in self.corpora.items() if corpus.validation is not None}

    @property
    def labels(self) -> list[str]:
        """The labels of the documents, by class index; empty without labels."""
        annotations = (store.annotations for store in self.train.values() if store.annotations is not None)
        return next((list(annotation.labels) for annotation in annotations), [])

    @property
    def provenance(self) -> dict[str, Any]:
        """What each source's curated corpus says of itself, by source; sources without one are left out."""
        stores = {name: corpus.train.provenance.get("corpus") for name, corpus in self.corpora.items()}
        return {name: found for name, found in stores.items() if found}

    @property
    def fingerprint(self) -> str:
        """The fingerprint of all training documents; of a stream, of its source and first era."""
        by_source = {name: corpus.train.fingerprint for name, corpus in self.corpora.items()}
        if "" in by_source:
            return by_source[""]
        return hashlib.sha256(json.dumps(by_source, sort_keys=True).encode()).hexdigest()


def prepare(
    data: DataConfig, tokenizer: TokenizerConfig, cache: Path, report: Report = print,
    trained_on: DataConfig | None = None,
) -> Prepared:  # fmt: skip
    """Return the tokenizer and the stores of every source, from the cache or made now.

    A tokenizer that is trained learns from `trained_on`, of a run whose stages have other text, else from the sources.

    Of a stream, the first era is read. The stores of a source do not depend on the other sources, unless a tokenizer is
    trained. Raises DataError if a source cannot be read or is empty, CheckpointError if the cache cannot be written.
    """
    sources = _open(data, cache, report)
    with storage_errors(cache):
        learns_from = _tokenizer_text(data, tokenizer, trained_on)
        learned = sources if learns_from is data else _open(learns_from, cache, report)
        trained = _with_chat_template(_cached_tokenizer(learned, tokenizer, cache, report), data)
        corpora = {}
        for name, source in sources.items():
            with errors_of(name):
                corpora[name] = _corpus(source, trained, cache, _naming(name, report))
    return Prepared(trained, corpora)


def find_prepared(
    data: DataConfig, tokenizer: TokenizerConfig, cache: Path, trained_on: DataConfig | None = None
) -> Prepared | None:
    """Return the result of `prepare`, with the same arguments, if all of it is cached, else None.

    Nothing is written or downloaded; local files are hashed, at about 1 GB/s. Raises DataError as `prepare` does.
    """
    learns_from = _tokenizer_text(data, tokenizer, trained_on)
    if not all(part.is_local() for text in (data, learns_from) for part in text.parts().values()):
        return None  # the newest commit can be looked up on the hub only, a manifest in its storage only
    sources = _open(data, cache, report=lambda line: None)
    learned = sources if learns_from is data else _open(learns_from, cache, report=lambda line: None)
    has_one = any(source.stores for source in learned.values())
    if tokenizer.trains and not has_one and not (_tokenizer_folder(learned, tokenizer, cache) / _TRAINED).exists():
        return None
    trained = _with_chat_template(_cached_tokenizer(learned, tokenizer, cache, report=lambda line: None), data)
    for source in sources.values():
        folder = source.stores or _store_folder(source, trained, cache)
        streamed = source.config.mode is Mode.stream
        if not (folder.exists() and Ledger(folder).eras if streamed else (folder / "done.json").exists()):
            return None
    return prepare(data, tokenizer, cache, lambda line: None, learns_from)


def _tokenizer_text(data: DataConfig, tokenizer: TokenizerConfig, trained_on: DataConfig | None) -> DataConfig:
    """Return the text that a trained tokenizer learns from; `data` where none is trained."""
    return data if trained_on is None or not tokenizer.trains else trained_on


def kept_store(fingerprint: str, cache: Path) -> Store | None:
    """Return the cached store whose training documents have this fingerprint, of whatever text it was made.

    So the tokens of a single source are found when its text has changed since. Raises DataError if it is damaged.
    """
    for path in sorted((cache / "stores").glob("*/train/manifest.json")):
        manifest = None
        with suppress(OSError, DataError):  # another text's may be damaged, or is being deleted
            manifest = read_json(path)
        if isinstance(manifest, dict) and manifest.get("fingerprint") == fingerprint:
            return Store(path.parent)
    return None


def check_files(data: DataConfig) -> None:
    """Raise DataError if local files named by the settings do not exist; nothing is read."""
    for name, part in data.parts().items():
        with errors_of(name):
            part.check_files()


def _open(data: DataConfig, cache: Path, report: Report) -> dict[str, Source]:
    """Return the sources of a corpus by name, each with its fingerprint in `identity`.

    A corpus in an object storage is copied to the cache, and opened there.
    """
    sources = {}
    for name, part in data.parts().items():
        with errors_of(name):
            sources[name] = on_this_machine(part, cache, _naming(name, report)).open()
            sources[name].identity = sources[name].fingerprint()
    return sources


def _naming(source: str, report: Report) -> Report:
    """Return `report` with the source's name before each line, in a mixture."""
    return (lambda line: report(f"source {source}: {line}")) if source else report


def _corpus(source: Source, tokenizer: Tokenizer, cache: Path, report: Report) -> Corpus:
    """Return the stores of one source."""
    data, folder = source.config, source.stores or _store_folder(source, tokenizer, cache)
    if data.mode is Mode.stream:
        return _begin_stream(folder, source, tokenizer, report)
    if not (folder / "done.json").exists():
        _fill(folder, source, data, tokenizer, report)
    written = _written_splits(folder)
    corpus = Corpus(folder, Store(folder / "train"), Store(folder / "validation") if "validation" in written else None)
    for store in (corpus.train, corpus.validation):
        if store is not None:
            store.check_tokenizer(tokenizer.fingerprint, tokenizer.vocab_size)
    return corpus


def _written_splits(folder: Path) -> set[str]:
    """Return the splits with documents by done.json, after a check that their stores exist.

    Raises DataError if one was deleted: a run without its validation store would silently not validate.
    """
    remedy = f"Delete {folder}: it is made again from the same text."
    done = read_json(folder / "done.json")
    counts = done.get("documents") if isinstance(done, dict) else None
    if not isinstance(counts, dict) or not all(isinstance(count, int) for count in counts.values()):
        raise DataError(f"{folder / 'done.json'} is damaged: it has no counts of documents. {remedy}")
    written = {split for split in ("train", "validation") if counts.get(split)}
    for split in sorted(written | {"train"}):
        if not (folder / split / "manifest.json").is_file():
            raise DataError(
                f"{folder / split / 'manifest.json'} does not exist, but {counts.get(split, 0):,} documents were "
                f"written. {remedy}"
            )
    return written


def _store_folder(source: Source, tokenizer: Tokenizer, cache: Path) -> Path:
    """Return the folder of one source's stores, which need not exist yet."""
    data = source.config
    metadata = [source.identity, tokenizer.fingerprint, data.validation_fraction, data.shard_tokens]
    metadata.append(getattr(data, "validation_path", None))
    metadata += split_rules(data.validation_fraction)
    if tokenizer.ids_version:  # else the ids are those of earlier versions, whose stores are found
        metadata.append(f"ids {tokenizer.ids_version}")
    if data.has_messages:
        metadata.append(f"chat template {tokenizer.chat_template}")
    if data.has_related:
        metadata.append("first text")  # annotations of an earlier version had another kind
    if isinstance(data, CuratedConfig) and not source.without_duplicates and data.mode is not Mode.stream:
        metadata.append("equal texts dropped")  # earlier versions kept them, in both splits
    if data.mode is Mode.stream:
        return cache / "stores" / f"{data.kind}-stream-{_key(*metadata, STREAM_VERSION, data.era_tokens)}"
    return cache / "stores" / f"{data.kind}-{_key(*metadata)}"


def finish_stream(prepared: Prepared, data: DataConfig, report: Report = print) -> None:
    """Read the corpus of a stream to its end, without training; errors as `prepare`."""
    stream = prepared.stream
    if stream is not None:
        with storage_errors(stream.folder):
            source = on_this_machine(data, stream.folder.parents[1], report).open()
            source.hashed = stream.hashed
            produce(StreamJob(stream.folder, source, prepared.tokenizer, report), enough=lambda: False)
        stream.ended()  # refreshes its totals


def _begin_stream(folder: Path, source: Source, tokenizer: Tokenizer, report: Report) -> Corpus:
    """Return a stream after reading its first era, unless that exists."""
    data = source.config
    if not Ledger(folder).eras:
        report(f"reading the first {data.era_tokens:,} tokens of the corpus, then training can start ...")
        produce(StreamJob(folder, source, tokenizer, report), enough=lambda: bool(Ledger(folder).eras))
        for remark in source.remarks():
            report(remark)
    stream = Stream(folder)
    stream.hashed = source.hashed
    stream.check_tokenizer(tokenizer.fingerprint, tokenizer.vocab_size)
    if (end := stream.ledger.end) is not None:
        read = end.documents + sum(end.skipped.values())
        if unread := source.remark_unread(stream.provenance.get("corpus", {}), read):
            report(unread)
    if stream.validation is None and data.validation_fraction:
        report(
            f"no document of the first {stream.ledger.eras[0].documents:,} is held out, so there is no validation: "
            f"try data.era_tokens={8 * data.era_tokens} or a larger data.validation_fraction"
        )
    return Corpus(folder, stream, stream.validation)


def _cached_tokenizer(sources: dict[str, Source], config: TokenizerConfig, cache: Path, report: Report) -> Tokenizer:
    """Return the tokenizer, of prepared stores if there are any; if trained, on all sources' training documents."""
    if stored := [source for source in sources.values() if isinstance(source, PreparedStores)]:
        return tokenizer_of(stored, config)
    if not config.trains:
        return config.load()
    folder = _tokenizer_folder(sources, config, cache)
    if not (folder / _TRAINED).exists():
        size = getattr(config, "vocab_size", None)
        report(f"training a tokenizer{f' of {size} tokens' if size else ''} ...")
        tokenizer = config.train(_training_texts(sources, config, report), report)
        _commit(folder, partial(_save_tokenizer, tokenizer))
    return _load_tokenizer(folder)


def _with_chat_template(tokenizer: Tokenizer, data: DataConfig) -> Tokenizer:
    """Return the tokenizer with the chat template that the settings of conversations choose, if there are any.

    Raises ConfigError for sources with different templates.
    """
    chats = {name: part for name, part in data.parts().items() if isinstance(part, ChatConfig)}
    templates = {name: part.template_of(tokenizer.chat_template) for name, part in chats.items()}
    first = next(iter(templates), "")
    for name, template in templates.items():
        if template != templates[first]:
            given, other = (printable(chats[each].chat_template) for each in (first, name))
            raise ConfigError(
                f"data.sources.{first}.chat_template={given} and data.sources.{name}.chat_template={other} are two "
                f"templates, and a model learns one. Try data.sources.{name}.chat_template={given}."
            )
    if templates:
        tokenizer.chat_template = templates[first]
    return tokenizer


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(folder)
    (folder / _FINGERPRINT).write_text(tokenizer.fingerprint, encoding="utf8")


def _load_tokenizer(folder: Path) -> Tokenizer:
    """Return a tokenizer of the cache; DataError if it changed since it was trained."""
    tokenizer = Tokenizer.load(folder)
    try:
        expected = read_text(folder / _FINGERPRINT, 1000)
    except FileNotFoundError:  # of an earlier version
        return tokenizer
    except (OSError, ValueError) as error:
        expected = str(error)
    if tokenizer.fingerprint != expected:
        raise DataError(
            f"the tokenizer in {folder} has changed since it was trained. Delete the folder: it is trained again."
        )
    return tokenizer


def _tokenizer_folder(sources: dict[str, Source], config: TokenizerConfig, cache: Path) -> Path:
    """Return the folder of a tokenizer trained on these sources, which need not exist yet."""
    corpus = [part for source in sources.values() for part in (source.identity, source.config.validation_fraction)]
    corpus += [rule for source in sources.values() for rule in split_rules(source.config.validation_fraction)]
    corpus += ["beginning" for source in sources.values() if source.config.mode is Mode.stream]
    return cache / "tokenizers" / f"{config.kind}-{_key(*corpus, asdict(config))}"


def _training_texts(sources: dict[str, Source], config: TokenizerConfig, report: Report) -> Iterator[str]:
    limit = config.training_bytes()
    for name, source in sources.items():
        training = (document.text for split, document in with_splits(source, source.config) if split == "train")
        with errors_of(name):
            texts = head(training, limit) if source.config.mode is Mode.stream and limit else training
            progress, characters = Progress(_naming(name, report)), 0
            for count, text in enumerate(texts, start=1):
                yield text
                characters += len(text)
                progress(f"read {count:,} documents to learn a tokenizer from", characters, source.share_read())


def _fill(folder: Path, source: Source, data: DataConfig, tokenizer: Tokenizer, report: Report) -> None:
    """Write both stores and commit them as one folder."""

    def write(temporary: Path) -> None:
        counts = write_stores(temporary, source, data, tokenizer, report)
        source.check_unchanged()
        (temporary / "done.json").write_text(json.dumps(counts, indent=1), encoding="utf8")

    _commit(folder, write)
    for remark in source.remarks():
        report(remark)


def _commit(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a draft folder, and rename it to `folder` when complete."""
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    _sweep_drafts(folder.parent)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        if folder.exists() and not (folder / "done.json").exists() and not (folder / "tokenizer.json").exists():
            shutil.rmtree(folder)
        if not folder.exists():  # else another process has written the same
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep_drafts(folder: Path) -> None:
    """Remove the drafts in a folder that killed processes left, on any machine: nothing in them is a day young."""
    for path in folder.glob("*.tmp-*"):
        if _DRAFT.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # its process, or another one that sweeps, is about to remove it
                newest = max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
                if time.time() - newest > OLD_DRAFT_S:
                    shutil.rmtree(path)


def _key(*parts: object) -> str:
    """Return a short hash of everything that decides a cached result."""
    text = json.dumps([PREPARE_VERSION, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def training_rows(
    prepared: Prepared, config: DataConfig, row_length: int, seed: int | OwnOrder
) -> MixtureDataset | StreamingDataset:
    """Return the training rows of `row_length` tokens in the order of a seed or stage; DataError if there are none."""
    pad_id = prepared.tokenizer.padding_id
    if prepared.stream is None:
        return mixture_dataset(prepared.train, config, row_length, pad_id, seed)
    assert not isinstance(seed, OwnOrder)  # stages.py refuses data.mode=stream for a stage with rows of its own
    return StreamingDataset(prepared.stream, config, row_length, pad_id, seed)


def validation_streams(prepared: Prepared, config: DataConfig, row_length: int) -> dict[str, ShuffledRows]:
    """Return the validation rows of each source that has a document with a target."""
    pad_id = prepared.tokenizer.padding_id
    rows = {name: validation_rows(store, config, row_length, pad_id) for name, store in prepared.validation.items()}
    return {name: stream for name, stream in rows.items() if stream is not None}
