"""From text to token stores, once: what was made is found again by the hash of what it was made from."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path

import xxhash

from pretrain.data.config import DataConfig, Mode, TokenizerConfig
from pretrain.data.ledger import Ledger
from pretrain.data.producer import STREAM_VERSION, produce
from pretrain.data.sources import Document, Source, open_source
from pretrain.data.splits import cut, in_batches, split_of
from pretrain.data.store import Store, StoreWriter
from pretrain.data.stream import Stream
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.tokenizer_training import beginning, build_tokenizer
from pretrain.errors import DataError

PREPARE_VERSION = 1  # of everything that decides what a store holds; raise it and old stores are left aside
Report = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A corpus ready to train on."""

    tokenizer: Tokenizer
    train: Store | Stream  # a stream holds one finished era at least
    validation: Store | None  # none where data.validation_fraction is 0, or a stream's first era has none
    folder: Path


def prepare(data: DataConfig, tokenizer: TokenizerConfig, cache: Path, report: Report = print) -> Prepared:
    """Return the tokenizer and the stores of a corpus, from the cache or made now; of a stream, its first era.

    Raises DataError where the corpus cannot be read or holds nothing.
    """
    source = open_source(data)
    corpus = source.fingerprint()
    trained = _cached_tokenizer(source, data, tokenizer, cache, report)
    facts = [corpus, trained.fingerprint, data.validation_fraction, data.shard_tokens]
    facts.append(getattr(data, "validation_path", None))
    if data.mode is Mode.stream:
        folder = cache / "stores" / f"{data.kind}-stream-{_key(*facts, STREAM_VERSION, data.era_tokens)}"
        return _begin_stream(folder, source, data, trained, report)
    folder = cache / "stores" / f"{data.kind}-{_key(*facts)}"
    if not (folder / "done.json").exists():
        _fill(folder, source, data, trained, report)
    validation = folder / "validation"
    found = Prepared(
        trained, Store(folder / "train"), Store(validation) if (validation / "manifest.json").exists() else None, folder
    )
    for store in (found.train, found.validation):
        if store is not None:
            store.check_tokenizer(trained.fingerprint, trained.vocab_size)
    return found


def finish_stream(prepared: Prepared, data: DataConfig, report: Report = print) -> None:
    """Read the corpus of a stream to its end, without training; nothing is done for a corpus of another mode.

    Raises DataError as `prepare` does.
    """
    if isinstance(prepared.train, Stream):
        source, tokenizer = open_source(data), prepared.tokenizer
        produce(prepared.folder, source, data, tokenizer, enough=lambda: False, report=report)
        prepared.train.ended()  # takes up what is there now


def _begin_stream(folder: Path, source: Source, data: DataConfig, tokenizer: Tokenizer, report: Report) -> Prepared:
    """Return a stream with its first era, read now where it is not there; more is read while a run trains."""
    if not Ledger(folder).eras:
        report(f"reading the beginning of the corpus: {data.era_tokens:,} tokens, and training can start ...")
        produce(folder, source, data, tokenizer, enough=lambda: bool(Ledger(folder).eras), report=report)
    stream = Stream(folder)
    stream.check_tokenizer(tokenizer.fingerprint, tokenizer.vocab_size)
    if stream.validation is None and data.validation_fraction:
        report(
            f"no document of the first {stream.ledger.eras[0].documents:,} is held out, so there is no validation: "
            f"try data.era_tokens={8 * data.era_tokens} or a larger data.validation_fraction"
        )
    return Prepared(tokenizer, stream, stream.validation, folder)


def _cached_tokenizer(
    source: Source, data: DataConfig, config: TokenizerConfig, cache: Path, report: Report
) -> Tokenizer:
    """Return the tokenizer; one that has to be trained sees the training documents only."""
    if config.kind != "bpe":
        return build_tokenizer(config, lambda: iter(()))
    part = ["beginning"] if data.mode is Mode.stream else []  # of the corpus
    key = _key(source.fingerprint(), data.validation_fraction, asdict(config), *part)
    folder = cache / "tokenizers" / f"{config.kind}-{key}"
    if not (folder / "tokenizer.json").exists():
        report(f"training a tokenizer of {getattr(config, 'vocab_size', '?')} tokens ...")
        tokenizer = build_tokenizer(config, lambda: _training_texts(source, data, config))
        _commit(folder, tokenizer.save)
    return Tokenizer.load(folder)


def _training_texts(source: Source, data: DataConfig, config: TokenizerConfig) -> Iterator[str]:
    texts = (document.text for split, document in _split(source, data) if split == "train")
    limit = getattr(config, "max_training_bytes", None)
    return beginning(texts, limit) if data.mode is Mode.stream and limit else texts


def _fill(folder: Path, source: Source, data: DataConfig, tokenizer: Tokenizer, report: Report) -> None:
    """Write both stores and commit them as one folder."""

    def write(temporary: Path) -> None:
        counts = _tokenise(temporary, source, data, tokenizer, report)
        (temporary / "done.json").write_text(json.dumps(counts, indent=1), encoding="utf8")

    _commit(folder, write)


def _tokenise(
    folder: Path, source: Source, data: DataConfig, tokenizer: Tokenizer, report: Report
) -> dict[str, object]:
    writers: dict[str, StoreWriter] = {}
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    for batch in in_batches(_split(source, data), lambda item: item[1].text):
        fresh = []
        for split, document in batch:
            digest = xxhash.xxh3_64_intdigest(document.text.encode())
            if digest in seen:
                counts["exact duplicates"] += 1
                continue
            seen.add(digest)
            fresh.append((split, document))
        encoded = tokenizer.encode_documents([document.text for _, document in fresh])
        for (split, document), tokens in zip(fresh, encoded, strict=True):
            if split not in writers:
                writers[split] = StoreWriter(
                    folder / split,
                    vocab_size=tokenizer.vocab_size,
                    tokenizer_fingerprint=tokenizer.fingerprint,
                    bos_id=tokenizer.bos_id,
                    eos_id=tokenizer.eos_id,
                    shard_tokens=data.shard_tokens,
                )
            writers[split].add(tokens, len(document.text.encode()), document.name)
            counts[split] += 1
            counts["bytes"] += len(document.text.encode())
            if sum(counts[s] for s in ("train", "validation")) % 20_000 == 0:
                report(f"tokenised {counts['train']:,} documents, {counts['bytes'] / 1e6:,.0f} MB ...")
    if "train" not in writers:
        raise DataError(f"no document is left to train on: all {counts['validation']} went into the validation split.")
    skipped = dict(source.skipped) | {"exact duplicates": counts["exact duplicates"]}
    report(
        f"tokenised {counts['train']:,} documents to train on and {counts['validation']:,} to validate on"
        + "".join(f", {count:,} skipped ({reason})" for reason, count in sorted(skipped.items()) if count)
    )
    for split, writer in writers.items():
        writer.finish(
            {"split": split, "source": data.kind, "corpus_fingerprint": source.fingerprint(), "skipped": skipped}
        )
    tokenizer.save(folder / "tokenizer")
    return {"documents": dict(counts), "skipped": skipped}


def _split(source: Source, data: DataConfig) -> Iterator[tuple[str, Document]]:
    """Yield each document with its split, decided by the hash of its text alone.

    Where a corpus is a single document, its end becomes the validation text.
    """
    own = source.validation_documents()
    if own is not None:
        yield from (("validation", document) for document in own)
        yield from (("train", document) for document in source.documents())
        return
    documents = source.documents()
    first = list(islice(documents, 2))
    if len(first) == 1 and data.validation_fraction:
        yield from cut(first[0], data.validation_fraction)
        return
    for document in chain(first, documents):
        yield split_of(document, data.validation_fraction), document


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
