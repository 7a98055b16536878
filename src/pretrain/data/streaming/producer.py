"""From a corpus to the eras of a stream: what is finished stays, and who comes next goes on from there."""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from pretrain.data.config import DataConfig
from pretrain.data.progress import LINES_S, Progress, minutes
from pretrain.data.sources.source import Document, ResumeToken, Source
from pretrain.data.sources.splits import in_batches
from pretrain.data.streaming.corpus import era_folder, locked, remedy
from pretrain.data.streaming.ledger import Era, Ledger, StreamPosition
from pretrain.data.streaming.resume_reading import Reading, resume_readings, save_resume_token
from pretrain.data.token_store.build import open_writer
from pretrain.data.token_store.store import StoreWriter
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import DataError
from pretrain.files.atomic_files import sync_to_disk, write_atomically
from pretrain.files.untrusted_files import read_bytes

STREAM_VERSION = 1  # of everything that decides what the eras hold; raise it and old streams are left aside


POLL_S = 0.2  # between tries to become the one that writes


REPORT_S = 60.0  # between words on how far it is, beside a run that trains


HASHES = "documents.u64"


MAX_HASHES_BYTES = 1 << 32


_LEFT = re.compile(r"\d{5,}(\.tmp-\d+)?|tokenizer\.tmp-\d+")  # of what a process that died may have left


Report = Callable[[str], object]


Encoded = tuple[Reading, int, npt.NDArray[np.uint32] | None]


def produce(
    folder: Path,
    source: Source,
    data: DataConfig,
    tokenizer: Tokenizer,
    *,
    enough: Callable[[], bool],
    report: Report,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Read the corpus on into the stream in `folder` until `enough`, its end, or `stopped`.

    One process writes at a time: where another one does, this waits until that made enough, or goes on in its place
    when it ends or dies. Raises DataError where the corpus cannot be read, has changed, or leaves nothing to train on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tries = 0
    waiting_since = reported_at = time.monotonic()
    while not (Ledger(folder).end or enough() or stopped()):
        with locked(folder) as held:
            if held:
                _Production(folder, source, data, tokenizer, report).run(enough, stopped)
                continue
        tries += 1
        if tries == 2:  # who waits for text looks at the lock for a moment
            report("another run reads this corpus: going on with what it reads")
        time.sleep(POLL_S)
        if time.monotonic() - reported_at > LINES_S:
            reported_at = time.monotonic()
            report(f"has waited {minutes(reported_at - waiting_since)} for the run that reads this corpus ...")


class _Production:
    """The work of the one process that holds the lock: era after era, each appearing in one piece."""

    def __init__(self, folder: Path, source: Source, data: DataConfig, tokenizer: Tokenizer, report: Report) -> None:
        self.folder, self.source, self.data, self.tokenizer = folder, source, data, tokenizer
        self.report = report
        self.text_bytes = 0  # read by this process
        self.ledger = Ledger(folder)
        self.progress = Progress(report, REPORT_S if self.ledger.eras else None)  # for the first era a run waits
        _sweep(folder, self.ledger)
        if not (folder / "tokenizer").exists():
            tokenizer.save(_draft(folder / "tokenizer"))
            _draft(folder / "tokenizer").rename(folder / "tokenizer")
        self.seen = {digest for era in self.ledger.eras for digest in _load_hashes(folder, era)}
        self.reached = self.ledger.eras[-1].reached if self.ledger.eras else StreamPosition(0, 0, 0, {}, "")

    def run(self, enough: Callable[[], bool], stopped: Callable[[], bool]) -> None:
        """Write eras until there are enough or the corpus ends; what is not finished when stopped is dropped."""
        reached = self.reached if self.ledger.eras else None
        hint = era_folder(self.folder, max(0, len(self.ledger.eras) - 1)) / "bookmark.json"
        encoded = self._encoded(resume_readings(self.source, self.data, reached, hint, self.report))
        while self.ledger.end is None and not (enough() or stopped()):
            era = _EraDraft(self.folder, len(self.ledger.eras), self.data, self.tokenizer)
            try:
                ended = self._fill(era, encoded, stopped)
                if ended is None:
                    return
                self.source.check_as_opened()
                if era.tokens:
                    self.ledger.append(era.finish(), self.reached)
                if ended:
                    self._end()
            finally:
                era.discard()

    def _encoded(self, readings: Iterator[Reading]) -> Iterator[Encoded]:
        """Yield each reading with the hash of its text, and its tokens unless the same text came before."""
        for batch in in_batches(readings, lambda reading: reading.document.text):
            encoded = [reading.document.text.encode() for reading in batch]
            self.text_bytes += sum(map(len, encoded))
            hashes = [xxhash.xxh3_64_intdigest(text) for text in encoded]
            fresh = []
            for digest in hashes:
                fresh.append(digest not in self.seen)
                self.seen.add(digest)
            texts = [reading.document.text for reading, new in zip(batch, fresh, strict=True) if new]
            tokens = iter(self.tokenizer.encode_documents(texts))
            for reading, digest, new in zip(batch, hashes, fresh, strict=True):
                yield reading, digest, next(tokens) if new else None

    def _fill(self, era: "_EraDraft", encoded: Iterator[Encoded], stopped: Callable[[], bool]) -> bool | None:
        """Add documents until the era is full; return whether the corpus ended before it was, or None if stopped."""
        for reading, digest, tokens in encoded:
            late = reading.split == "validation" and era.number > 0
            if reading.read:  # not of a validation set of its own
                self.reached = StreamPosition(
                    documents=reading.read,
                    duplicates=self.reached.duplicates + (tokens is None),
                    held_out=self.reached.held_out + (late and tokens is not None),
                    skipped=reading.skipped,
                    last_document=reading.last_document,
                )
            era.resume_token = reading.resume_token
            if tokens is not None:
                era.add(digest, None if late else reading.split, reading.document, tokens)
            self._report_progress(era)
            if stopped():
                return None
            if era.tokens >= self.data.era_tokens:
                return False
        return True

    def _report_progress(self, era: "_EraDraft") -> None:
        """Say now and then how far it is; of the first era also the time until training can start."""
        if self.progress.is_due():
            tokens = sum(done.tokens for done in self.ledger.eras) + era.tokens
            share = None if self.ledger.eras else min(1.0, era.tokens / self.data.era_tokens)
            what = f"read {self.reached.documents:,} documents of the corpus, {tokens:,} tokens so far"
            self.progress(what, self.text_bytes, share)

    def _end(self) -> None:
        """Write that the corpus has been read to its end."""
        if not self.ledger.eras:
            raise DataError(
                f"no document is left to train on: all {self.reached.documents} went into the validation split."
            )
        self.reached = replace(self.reached, skipped=dict(self.source.skipped))
        self.ledger.append(None, self.reached)
        dropped = self.reached.skipped | {
            "exact duplicates": self.reached.duplicates,
            "held out after the first era": self.reached.held_out,
        }
        documents, tokens = (sum(getattr(era, name) for era in self.ledger.eras) for name in ("documents", "tokens"))
        self.report(
            f"the corpus has been read to its end: {documents:,} documents to train on, {tokens:,} tokens"
            + "".join(f", {count:,} left out ({reason})" for reason, count in sorted(dropped.items()) if count)
        )


class _EraDraft:
    """An era being written, in a folder that gets its name when it is whole."""

    def __init__(self, folder: Path, number: int, data: DataConfig, tokenizer: Tokenizer) -> None:
        self.number, self.data, self.tokenizer = number, data, tokenizer
        self.stream = folder.name
        self.folder = era_folder(folder, number)
        self.draft = _draft(self.folder)
        self.draft.mkdir(parents=True)
        self.tokens = 0  # to train on
        self.resume_token: ResumeToken | None = None
        self.hashes: list[int] = []
        self.writers: dict[str, StoreWriter] = {}

    def add(self, digest: int, split: str | None, document: Document, tokens: npt.NDArray[np.uint32]) -> None:
        """Add a document to the store of its split, or, where that is None, only remember that it came."""
        self.hashes.append(digest)
        if split is None:
            return
        if split not in self.writers:
            self.writers[split] = open_writer(self.draft / split, self.tokenizer, self.data.shard_tokens)
        self.writers[split].add(tokens, len(document.text.encode()), document.name)
        self.tokens += tokens.size if split == "train" else 0

    def finish(self) -> dict[str, Any]:
        """Give the folder its name and return what the ledger says of it."""
        stores = {
            split: writer.finish({"split": split, "source": self.data.kind, "stream": self.stream, "era": self.number})
            for split, writer in self.writers.items()
        }
        hashes = np.array(self.hashes, "<u8").tobytes()
        write_atomically(self.draft / HASHES, hashes)
        if self.resume_token is not None:
            save_resume_token(self.resume_token, self.draft / "bookmark.json")
        self.draft.rename(self.folder)
        sync_to_disk(self.folder.parent)
        train, validation = stores["train"], stores.get("validation")
        return {
            "number": self.number,
            "documents": train.n_documents,
            "tokens": train.n_tokens,
            "text_bytes": train.text_bytes,
            "fingerprint": train.fingerprint,
            "validation": validation.fingerprint if validation else None,
            "hashes": hashlib.sha256(hashes).hexdigest(),
        }

    def discard(self) -> None:
        """Remove what was not finished."""
        shutil.rmtree(self.draft, ignore_errors=True)


def _draft(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.tmp-{os.getpid()}")


def _sweep(folder: Path, ledger: Ledger) -> None:
    """Remove what an earlier process left unfinished: drafts, and an era that was not yet in the ledger."""
    listed = {era_folder(folder, era.number) for era in ledger.eras}
    for place in (folder / "eras", folder / "tokenizer"):
        if place.is_symlink():
            raise DataError(f"{place} is a link, and what is prepared is kept in its own folder. Delete {folder}.")
    for left in [*(folder / "eras").glob("*"), *folder.glob("tokenizer.tmp-*")]:
        if left not in listed and _LEFT.fullmatch(left.name) and not left.is_symlink():
            shutil.rmtree(left)


def _load_hashes(folder: Path, era: Era) -> list[int]:
    """Return the hashes of an era's documents; raises DataError where the file is not as it was written."""
    path = era_folder(folder, era.number) / HASHES
    try:
        data = read_bytes(path, MAX_HASHES_BYTES)
    except (OSError, ValueError):
        data = b""
    if hashlib.sha256(data).hexdigest() != era.hashes:
        raise DataError(f"{path} is missing or not as it was written. {remedy(folder)}")
    return np.frombuffer(data, "<u8").tolist()
