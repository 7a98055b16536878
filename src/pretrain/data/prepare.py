"""From text to token stores, once: what was made is found again by the hash of what it was made from."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pretrain.data.config import DataConfig, HuggingFaceConfig, Mode, TextFilesConfig, TokenizerConfig, errors_of
from pretrain.data.fine_tuning_config import AnnotatedConfig
from pretrain.data.mixture import MixtureDataset, mixture_dataset
from pretrain.data.progress import Progress
from pretrain.data.sources.open_source import open_source
from pretrain.data.sources.source import Source
from pretrain.data.streaming.corpus import Stream
from pretrain.data.streaming.dataset import StreamingDataset
from pretrain.data.streaming.ledger import Ledger
from pretrain.data.streaming.producer import STREAM_VERSION, produce
from pretrain.data.token_store.build import Report, with_splits, write_stores
from pretrain.data.token_store.format import read_json, storage_errors
from pretrain.data.token_store.store import Store
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train_bpe import build_tokenizer, head
from pretrain.errors import DataError
from pretrain.files.untrusted_files import read_text

PREPARE_VERSION = 1  # of everything that decides what a store holds; raise it and old stores are left aside
_TRAINED = "tokenizer.json"  # there once a tokenizer is
_FINGERPRINT = "fingerprint.txt"  # of a tokenizer, beside it


@dataclass(frozen=True)
class Corpus:
    """One source of text, cut into tokens."""

    folder: Path
    train: Store | Stream  # a stream holds one finished era at least
    validation: Store | None  # none where data.validation_fraction is 0, or a stream's first era has none


@dataclass(frozen=True)
class Prepared:
    """What a run trains on: a tokenizer, and the corpus of each source by its name; one alone has the name ""."""

    tokenizer: Tokenizer
    corpora: dict[str, Corpus]

    @property
    def train(self) -> dict[str, Store]:
        """The training documents of each source that was read whole."""
        return {name: corpus.train for name, corpus in self.corpora.items() if isinstance(corpus.train, Store)}

    @property
    def stream(self) -> Stream | None:
        """The corpus that is read while the run trains; none where all was read before."""
        return next((corpus.train for corpus in self.corpora.values() if isinstance(corpus.train, Stream)), None)

    @property
    def validation(self) -> dict[str, Store]:
        """The validation documents of each source that has any."""
        return {name: corpus.validation for name, corpus in self.corpora.items() if corpus.validation is not None}

    @property
    def labels(self) -> list[str]:
        """The labels of the documents, by their numbers; none where they have none."""
        found = [store.annotations for store in self.train.values() if store.annotations is not None]
        return list(found[0].labels) if found else []

    @property
    def fingerprint(self) -> str:
        """The fingerprint of all training documents; of a stream, of its source and first era."""
        found = {name: corpus.train.fingerprint for name, corpus in self.corpora.items()}
        if "" in found:
            return found[""]
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def prepare(data: DataConfig, tokenizer: TokenizerConfig, cache: Path, report: Report = print) -> Prepared:
    """Return the tokenizer and the stores of every source, from the cache or made now; of a stream, its first era.


    A source's stores do not depend on what it is mixed with, but for the tokenizer where that is trained.
    Raises DataError where a source cannot be read or holds nothing, CheckpointError where the cache cannot be written.
    """
    sources, fingerprints = _open(data)
    with storage_errors(cache):
        trained = _cached_tokenizer(sources, fingerprints, tokenizer, cache, report)
        corpora = {}
        for name, source in sources.items():
            with errors_of(name):
                corpora[name] = _corpus(source, fingerprints[name], trained, cache, _naming(name, report))
    return Prepared(trained, corpora)


def find_prepared(data: DataConfig, tokenizer: TokenizerConfig, cache: Path) -> Prepared | None:
    """Return what `prepare` would return where nothing is left for it to do, else None; nothing is written or fetched.

    Files of this machine are hashed, at about 1 GB/s. Raises DataError as `prepare` does.
    """
    if any(isinstance(part, HuggingFaceConfig) and not Path(part.path).is_dir() for part in data.parts().values()):
        return None  # only the hub knows which commit is the newest
    sources, fingerprints = _open(data)
    if tokenizer.kind == "bpe" and not (_tokenizer_folder(sources, fingerprints, tokenizer, cache) / _TRAINED).exists():
        return None
    trained = _cached_tokenizer(sources, fingerprints, tokenizer, cache, report=lambda line: None)
    for name, source in sources.items():
        folder = _store_folder(source, fingerprints[name], trained, cache)
        streamed = source.config.mode is Mode.stream
        if not (folder.exists() and Ledger(folder).eras if streamed else (folder / "done.json").exists()):
            return None
    return prepare(data, tokenizer, cache, report=lambda line: None)


def check_files(data: DataConfig) -> None:
    """Raise DataError where files of this machine that the settings name are not there; nothing is read."""
    for name, part in data.parts().items():
        if isinstance(part, TextFilesConfig | AnnotatedConfig):
            with errors_of(name):
                open_source(part)


def _open(data: DataConfig) -> tuple[dict[str, Source], dict[str, str]]:
    """Return the sources of a corpus and their fingerprints, by name."""
    sources, fingerprints = {}, {}
    for name, part in data.parts().items():
        with errors_of(name):
            sources[name] = open_source(part)
            fingerprints[name] = sources[name].identity = sources[name].fingerprint()
    return sources, fingerprints


def _naming(source: str, report: Report) -> Report:
    """Return `report` with the name of a mixture's source before each line."""
    return (lambda line: report(f"source {source}: {line}")) if source else report


def _corpus(source: Source, fingerprint: str, tokenizer: Tokenizer, cache: Path, report: Report) -> Corpus:
    """Return the stores of one source."""
    data, folder = source.config, _store_folder(source, fingerprint, tokenizer, cache)
    if data.mode is Mode.stream:
        return _begin_stream(folder, source, tokenizer, report)
    if not (folder / "done.json").exists():
        _fill(folder, source, data, tokenizer, report)
    written = _written_splits(folder)
    found = Corpus(folder, Store(folder / "train"), Store(folder / "validation") if "validation" in written else None)
    for store in (found.train, found.validation):
        if store is not None:
            store.check_tokenizer(tokenizer.fingerprint, tokenizer.vocab_size)
    return found


def _written_splits(folder: Path) -> set[str]:
    """Return the splits that have documents by done.json, once each is found to be there still.

    Raises DataError where one is gone since: without its validation a run would end without one, and not say so.
    """
    remedy = f"Delete {folder}: it is made again from the same text."
    done = read_json(folder / "done.json")
    counts = done.get("documents") if isinstance(done, dict) else None
    if not isinstance(counts, dict) or not all(isinstance(count, int) for count in counts.values()):
        raise DataError(f"{folder / 'done.json'} is damaged: it does not say how many documents were written. {remedy}")
    written = {split for split in ("train", "validation") if counts.get(split)}
    for split in sorted(written | {"train"}):
        if not (folder / split / "manifest.json").is_file():
            raise DataError(
                f"{folder / split} is gone, or its manifest.json is, where {counts.get(split, 0):,} documents were "
                f"written to. {remedy}"
            )
    return written


def _store_folder(source: Source, fingerprint: str, tokenizer: Tokenizer, cache: Path) -> Path:
    """Return where the stores of one source are, or will be."""
    data = source.config
    metadata = [fingerprint, tokenizer.fingerprint, data.validation_fraction, data.shard_tokens]
    metadata.append(getattr(data, "validation_path", None))
    if tokenizer.ids_version:  # else the ids are what they always were, and stores made before are found
        metadata.append(f"ids {tokenizer.ids_version}")
    if data.mode is Mode.stream:
        return cache / "stores" / f"{data.kind}-stream-{_key(*metadata, STREAM_VERSION, data.era_tokens)}"
    return cache / "stores" / f"{data.kind}-{_key(*metadata)}"


def finish_stream(prepared: Prepared, data: DataConfig, report: Report = print) -> None:
    """Read the corpus of a stream to its end, without training; nothing is done for a corpus of another mode.

    Raises what `prepare` raises.
    """
    stream = prepared.stream
    if stream is not None:
        with storage_errors(stream.folder):
            source = open_source(data)
            source.hashed = stream.hashed
            produce(stream.folder, source, data, prepared.tokenizer, enough=lambda: False, report=report)
        stream.ended()  # takes up what is there now


def _begin_stream(folder: Path, source: Source, tokenizer: Tokenizer, report: Report) -> Corpus:
    """Return a stream with its first era, read now where it is not there; more is read while a run trains."""
    data = source.config
    if not Ledger(folder).eras:
        report(f"reading the beginning of the corpus: {data.era_tokens:,} tokens, and training can start ...")
        produce(folder, source, data, tokenizer, enough=lambda: bool(Ledger(folder).eras), report=report)
        for remark in source.remarks():
            report(remark)
    stream = Stream(folder)
    stream.hashed = source.hashed
    stream.check_tokenizer(tokenizer.fingerprint, tokenizer.vocab_size)
    if stream.validation is None and data.validation_fraction:
        report(
            f"no document of the first {stream.ledger.eras[0].documents:,} is held out, so there is no validation: "
            f"try data.era_tokens={8 * data.era_tokens} or a larger data.validation_fraction"
        )
    return Corpus(folder, stream, stream.validation)


def _cached_tokenizer(
    sources: dict[str, Source], fingerprints: dict[str, str], config: TokenizerConfig, cache: Path, report: Report
) -> Tokenizer:
    """Return the tokenizer; one that has to be trained sees the training documents of all sources, and no others."""
    if config.kind != "bpe":
        return build_tokenizer(config, lambda: iter(()))
    folder = _tokenizer_folder(sources, fingerprints, config, cache)
    if not (folder / _TRAINED).exists():
        report(f"training a tokenizer of {getattr(config, 'vocab_size', '?')} tokens ...")
        tokenizer = build_tokenizer(config, lambda: _training_texts(sources, config, report), report)
        _commit(folder, partial(_save_tokenizer, tokenizer))
    return _load_tokenizer(folder)


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(folder)
    (folder / _FINGERPRINT).write_text(tokenizer.fingerprint, encoding="utf8")


def _load_tokenizer(folder: Path) -> Tokenizer:
    """Return a tokenizer of the cache; DataError where it is no longer the one that was trained."""
    tokenizer = Tokenizer.load(folder)
    try:
        right = read_text(folder / _FINGERPRINT, 1000)
    except FileNotFoundError:  # of an earlier version
        return tokenizer
    except (OSError, ValueError) as error:
        right = str(error)
    if tokenizer.fingerprint != right:
        raise DataError(f"the tokenizer in {folder} is not as it was trained. Delete the folder: it is trained again.")
    return tokenizer


def _tokenizer_folder(
    sources: dict[str, Source], fingerprints: dict[str, str], config: TokenizerConfig, cache: Path
) -> Path:
    """Return where a tokenizer trained on these sources is, or will be."""
    seen = [part for name in sources for part in (fingerprints[name], sources[name].config.validation_fraction)]
    seen += ["beginning" for source in sources.values() if source.config.mode is Mode.stream]  # of the corpus
    return cache / "tokenizers" / f"{config.kind}-{_key(*seen, asdict(config))}"


def _training_texts(sources: dict[str, Source], config: TokenizerConfig, report: Report) -> Iterator[str]:
    limit = getattr(config, "max_training_bytes", None)
    for name, source in sources.items():
        whole = (document.text for split, document in with_splits(source, source.config) if split == "train")
        with errors_of(name):
            texts = head(whole, limit) if source.config.mode is Mode.stream and limit else whole
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
    """Have `write` fill a folder that appears under its name only when it is whole."""
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        if folder.exists() and not (folder / "done.json").exists() and not (folder / "tokenizer.json").exists():
            shutil.rmtree(folder)
        if not folder.exists():  # else another process was faster, and made the same
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _key(*parts: object) -> str:
    """Return a short hash of everything that decides a result."""
    text = json.dumps([PREPARE_VERSION, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def training_rows(
    prepared: Prepared, config: DataConfig, row_length: int, seed: int
) -> MixtureDataset | StreamingDataset:
    """Return the stream of packed rows of `row_length` tokens; raises DataError where a source has none."""
    pad_id = prepared.tokenizer.padding_id
    if prepared.stream is None:
        return mixture_dataset(prepared.train, config, row_length, pad_id, seed)
    return StreamingDataset(prepared.stream, config, row_length, pad_id, seed)
