"""The writer of a stream: a corpus becomes eras; another process continues after the last finished era."""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from pretrain.data.progress import LINES_S, Progress, minutes
from pretrain.data.sources.source import Document, ResumeToken, Source
from pretrain.data.sources.splits import in_batches
from pretrain.data.streaming.corpus import POLL_S, Stream, era_folder, locked, remedy
from pretrain.data.streaming.ledger import Era, Ledger, StreamPosition
from pretrain.data.streaming.resume_reading import Reading, resume_readings, save_resume_token
from pretrain.data.token_store.build import open_writer
from pretrain.data.token_store.store import StoreWriter
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import DataError
from pretrain.files.atomic_files import sync_to_disk, write_atomically
from pretrain.files.untrusted_files import read_bytes

STREAM_VERSION = 1  # of the rules that decide the content of eras; raise it and older streams are no longer used
REPORT_S = 60.0  # between progress lines while a run trains
HASHES = "documents.u64"
MAX_HASHES_BYTES = 1 << 32
_LEFTOVER = re.compile(r"\d{5,}(\.tmp-\d+)?|tokenizer\.tmp-\d+")  # names that a killed process may have left

Encoded = tuple[Reading, int, npt.NDArray[np.uint32] | None]


@dataclass(frozen=True)
class StreamJob:
    """A corpus to read, and the stream to write."""

    folder: Path
    source: Source
    tokenizer: Tokenizer
    report: Callable[[str], object]


def produce(job: StreamJob, enough: Callable[[], bool], stopped: Callable[[], bool] = lambda: False) -> None:
    """Read the corpus into the stream until `enough`, its end, or `stopped`.

    One process writes at a time. While another one does, this waits until there is enough, and takes over when the
    other ends or dies. Raises DataError if the corpus cannot be read, has changed, or has no training document.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    tries = 0
    waiting_since = reported_at = time.monotonic()
    while not (Ledger(job.folder).end or enough() or stopped()):
        with locked(job.folder) as held:
            if held:
                _Production(job).run(enough, stopped)
                continue
        tries += 1
        if tries == 2:  # a run that waits for text holds the lock for a moment only
            job.report("another run reads this corpus: using what it reads")
        time.sleep(POLL_S)
        if time.monotonic() - reported_at > LINES_S:
            reported_at = time.monotonic()
            job.report(f"has waited {minutes(reported_at - waiting_since)} for the run that reads this corpus ...")


class _Production:
    """The work of the process that holds the lock: one era after another, each renamed into place when complete."""

    def __init__(self, job: StreamJob) -> None:
        self.job, self.folder, self.source = job, job.folder, job.source
        self.text_bytes = 0  # read by this process
        self.ledger = Ledger(job.folder)
        self.progress = Progress(job.report, REPORT_S if self.ledger.eras else None)  # a run waits for the first era
        _sweep(job.folder, self.ledger)
        if not (job.folder / "tokenizer").exists():
            job.tokenizer.save(_draft(job.folder / "tokenizer"))
            _draft(job.folder / "tokenizer").rename(job.folder / "tokenizer")
        self.seen = {digest for era in self.ledger.eras for digest in _load_hashes(job.folder, era)}
        self.reached = self.ledger.eras[-1].reached if self.ledger.eras else StreamPosition(0, 0, 0, {}, "")
        if self.ledger.eras:
            written = Stream(job.folder).era(len(self.ledger.eras) - 1).provenance
            self.source.check_read_before(written.get("corpus", {}))

    def run(self, enough: Callable[[], bool], stopped: Callable[[], bool]) -> None:
        """Write eras until `enough` or the corpus ends; an unfinished era is dropped when stopped."""
        reached = self.reached if self.ledger.eras else None
        hint = era_folder(self.folder, max(0, len(self.ledger.eras) - 1)) / "bookmark.json"
        encoded = self._encoded(resume_readings(self.source, self.source.config, reached, hint, self.job.report))
        while self.ledger.end is None and not (enough() or stopped()):
            era = _EraDraft(self.job, len(self.ledger.eras))
            try:
                ended = self._fill(era, encoded, stopped)
                while ended and (more := self._resume_at_growth(era, stopped)) is not None:
                    encoded = more
                    ended = self._fill(era, encoded, stopped)
                if ended is None or (ended and stopped()):
                    return
                self.source.check_as_opened()
                if era.tokens:
                    self.ledger.append(era.finish(), self.reached)
                if ended:
                    self._end()
            finally:
                era.discard()

    def _encoded(self, readings: Iterator[Reading]) -> Iterator[Encoded]:
        """Yield each reading with its text's hash, and its tokens unless a duplicate."""
        for batch in in_batches(readings, lambda reading: reading.document.text):
            encoded = [reading.document.text.encode() for reading in batch]
            self.text_bytes += sum(map(len, encoded))
            hashes = [xxhash.xxh3_64_intdigest(text) for text in encoded]
            fresh = []
            for digest in hashes:
                fresh.append(digest not in self.seen)
                self.seen.add(digest)
            texts = [reading.document.text for reading, new in zip(batch, fresh, strict=True) if new]
            tokens = iter(self.job.tokenizer.encode_documents(texts))
            for reading, digest, new in zip(batch, hashes, fresh, strict=True):
                yield reading, digest, next(tokens) if new else None

    def _fill(self, era: "_EraDraft", encoded: Iterator[Encoded], stopped: Callable[[], bool]) -> bool | None:
        """Add documents until the era is full; return whether the corpus ended, None if stopped."""
        for reading, digest, tokens in encoded:
            late = reading.split == "validation" and era.number > 0
            if reading.read:  # not from a separate validation set
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
            if era.tokens >= self.source.config.era_tokens:
                return False
        return True

    def _resume_at_growth(self, era: "_EraDraft", stopped: Callable[[], bool]) -> Iterator[Encoded] | None:
        """Wait for documents after those that were read; return them, None if there are none."""

        def keep_waiting() -> bool:
            self.progress.report_waiting(f"has read {self.reached.documents:,} documents and waits for more")
            return not stopped()

        if not self.source.wait_for_more(keep_waiting):
            return None
        hint = era.draft / "bookmark.json"
        if era.resume_token is not None:
            save_resume_token(era.resume_token, hint)
        source = self.source
        return self._encoded(resume_readings(source, source.config, self.reached, hint, self.job.report))

    def _report_progress(self, era: "_EraDraft") -> None:
        """Report progress if due; during the first era also the time until training can start."""
        if self.progress.is_due():
            tokens = sum(done.tokens for done in self.ledger.eras) + era.tokens
            share = None if self.ledger.eras else min(1.0, era.tokens / self.source.config.era_tokens)
            what = f"read {self.reached.documents:,} documents of the corpus, {tokens:,} tokens so far"
            self.progress(what, self.text_bytes, share)

    def _end(self) -> None:
        """Append the end of the corpus to the ledger and report the totals."""
        if not self.ledger.eras:
            raise DataError(
                f"no document is left to train on: all {self.reached.documents} went into the validation split. "
                f"Try a smaller data.validation_fraction than {self.source.config.validation_fraction}."
            )
        self.reached = replace(self.reached, skipped=dict(self.source.skipped))
        self.ledger.append(None, self.reached)
        dropped = self.reached.skipped | {
            "exact duplicates": self.reached.duplicates,
            "held out after the first era": self.reached.held_out,
        }
        documents, tokens = (sum(getattr(era, name) for era in self.ledger.eras) for name in ("documents", "tokens"))
        self.job.report(
            f"the corpus has been read to its end: {documents:,} training documents, {tokens:,} tokens"
            + "".join(f", {count:,} dropped ({reason})" for reason, count in sorted(dropped.items()) if count)
        )


class _EraDraft:
    """An era being written, in a folder that gets its final name when complete."""

    def __init__(self, job: StreamJob, number: int) -> None:
        self.job, self.number = job, number
        self.folder = era_folder(job.folder, number)
        self.draft = _draft(self.folder)
        self.draft.mkdir(parents=True)
        self.tokens = 0  # for training
        self.resume_token: ResumeToken | None = None
        self.hashes: list[int] = []
        self.writers: dict[str, StoreWriter] = {}

    def add(self, digest: int, split: str | None, document: Document, tokens: npt.NDArray[np.uint32]) -> None:
        """Add a document to the store of its split; only its hash if `split` is None."""
        self.hashes.append(digest)
        if split is None:
            return
        if split not in self.writers:
            self.writers[split] = open_writer(
                self.draft / split, self.job.tokenizer, self.job.source.config.shard_tokens
            )
        self.writers[split].add(tokens, len(document.text.encode()), document.name)
        self.tokens += tokens.size if split == "train" else 0

    def finish(self) -> dict[str, Any]:
        """Give the folder its final name and return its line of the ledger."""
        source = self.job.source
        metadata: dict[str, object] = {"source": source.config.kind, "stream": self.job.folder.name, "era": self.number}
        if origin := source.provenance():
            metadata["corpus"] = origin
        stores = {split: writer.finish({"split": split, **metadata}) for split, writer in self.writers.items()}
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
        """Remove the draft if the era was not finished."""
        shutil.rmtree(self.draft, ignore_errors=True)


def _draft(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.tmp-{os.getpid()}")


def _sweep(folder: Path, ledger: Ledger) -> None:
    """Remove the drafts of a killed process and its era that the ledger does not list."""
    listed = {era_folder(folder, era.number) for era in ledger.eras}
    for path in (folder / "eras", folder / "tokenizer"):
        if path.is_symlink():
            raise DataError(f"{path} is a link, but prepared data must lie in its own folder. Delete {folder}.")
    for path in [*(folder / "eras").glob("*"), *folder.glob("tokenizer.tmp-*")]:
        if path not in listed and _LEFTOVER.fullmatch(path.name) and not path.is_symlink():
            shutil.rmtree(path)


def _load_hashes(folder: Path, era: Era) -> list[int]:
    """Return the hashes of an era's documents; DataError if the file is damaged."""
    path = era_folder(folder, era.number) / HASHES
    try:
        data = read_bytes(path, MAX_HASHES_BYTES)
    except (OSError, ValueError):
        data = b""
    if hashlib.sha256(data).hexdigest() != era.hashes:
        raise DataError(f"{path} is missing or not as it was written. {remedy(folder)}")
    return np.frombuffer(data, "<u8").tolist()
