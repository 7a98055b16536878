"""A stream: the part of a corpus read so far, stored so that a run can read the same rows again.

    ledger.jsonl                    the finished eras; see ledger.py
    eras/00000/train/               a token store: the training documents of one section of the corpus
    eras/00000/validation/          in era 0 only, if documents are held out
    eras/00000/documents.u64        hashes of the era's documents, to drop later documents with the same text
    eras/00000/bookmark.json        a resume token of the source; a hint that saves time, never needed
    tokenizer/                      the tokenizer of the stores
    lock                            held by the one process that writes here; the system releases it when it dies

The end of an era depends on the documents and the settings alone, never on time: a stream written by one process equals
one written by ten processes that were killed one after another.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretrain.data.sources.unchanged_files import HashedFile
from pretrain.data.streaming.ledger import Ledger
from pretrain.data.token_store.store import Store
from pretrain.errors import DataError
from pretrain.files.locks import try_lock
from pretrain.files.untrusted_files import open_own

POLL_S = 0.2  # between reads of what another process writes


class Stream:
    """The finished eras of a stream, at least one. Totals are as of the last call of `ended`."""

    def __init__(self, folder: Path) -> None:
        """Open a stream; DataError if it has no era, or a damaged ledger or validation store."""
        self.folder = folder
        self.ledger = Ledger(folder)
        if not self.ledger.eras:
            raise DataError(f"{folder} holds no stream: its ledger lists no finished era.")
        first = self.ledger.eras[0]
        self.fingerprint: str = first.chain  # of the source, the settings and the first era's tokens
        self.validation: Store | None = None
        self.hashed: dict[str, HashedFile] = {}  # block hashes of the corpus files when the run began, by path
        if first.validation is not None:
            self.validation = self._store(0, "validation", first.validation)

    def ended(self) -> bool:
        """Refresh the ledger; return whether the corpus has been read to its end."""
        self.ledger.refresh()
        return self.ledger.end is not None

    @property
    def provenance(self) -> dict[str, Any]:
        """What is known of the text, as of the last era."""
        return self.era(len(self.ledger.eras) - 1).provenance

    @property
    def n_tokens(self) -> int:
        """The training tokens so far."""
        return sum(era.tokens for era in self.ledger.eras)

    @property
    def n_documents(self) -> int:
        """The training documents so far."""
        return sum(era.documents for era in self.ledger.eras)

    @property
    def text_bytes(self) -> int:
        """The bytes of their text."""
        return sum(era.text_bytes for era in self.ledger.eras)

    def era(self, number: int) -> Store:
        """Return the store of an era; DataError if it is damaged or not the listed one."""
        return self._store(number, "train", self.ledger.eras[number].fingerprint)

    def check_tokenizer(self, fingerprint: str, vocab_size: int) -> None:
        """Raise DataError for a tokenizer other than that of the stream."""
        self.era(0).check_tokenizer(fingerprint, vocab_size)

    def verify(self) -> None:
        """Read all files, about 1 GB/s; DataError names the first damaged file and offset."""
        for era in self.ledger.eras:
            self.era(era.number).verify()

    def _store(self, number: int, split: str, fingerprint: str) -> Store:
        try:
            store = Store(era_folder(self.folder, number) / split)
        except DataError as error:
            raise DataError(f"{error} {remedy(self.folder)}") from error
        if store.fingerprint != fingerprint:
            raise DataError(f"{store.folder} is not the store that the ledger lists. {remedy(self.folder)}")
        return store


def era_folder(folder: Path, number: int) -> Path:
    """Return the folder of an era of the stream in `folder`."""
    return folder / "eras" / f"{number:05d}"


def remedy(folder: Path) -> str:
    """Return the remedy for a damaged stream."""
    return f"Delete {folder}: the corpus is read again into the same eras."


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the stream's lock if it is free; yields whether it was. Never waits.

    On read-only storage nobody writes, so True is yielded without a lock.
    """
    try:
        handle = open_own(folder / "lock", os.O_RDWR)
    except ValueError as error:
        raise DataError(f"{folder / 'lock'} cannot be used: {error}. Delete it.") from error
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        yield True
        return
    try:
        yield try_lock(handle)
    finally:
        os.close(handle)
