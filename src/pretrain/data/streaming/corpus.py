"""A stream: a corpus as far as it has been read, kept so that what was trained on can be read again exactly.

    ledger.jsonl                    what is finished; see ledger.py
    eras/00000/train/               a token store: the training documents of one stretch of the corpus
    eras/00000/validation/          of era 0 only, where the corpus gave documents to hold out
    eras/00000/documents.u64        hashes of the era's documents, so that a later one with the same text is dropped
    eras/00000/bookmark.json        where the source can be read on; a hint that saves time, never needed
    tokenizer/                      what wrote the stores
    lock                            held by the one process that writes here; the system lets go when it dies

Where an era ends depends on the documents and the settings alone, never on time: a stream made in one go equals one
made by ten processes that were killed one after another.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.data.sources.unchanged_files import HashedFile
from pretrain.data.streaming.ledger import Ledger
from pretrain.data.token_store.store import Store
from pretrain.errors import DataError
from pretrain.files.untrusted_files import open_own


class Stream:
    """The finished eras of a stream that has one at least. The totals are of what was read when last asked `ended`."""

    def __init__(self, folder: Path) -> None:
        """Open a stream; raises DataError where it has no era yet, or its ledger or validation store is damaged."""
        self.folder = folder
        self.ledger = Ledger(folder)
        if not self.ledger.eras:
            raise DataError(f"{folder} holds no stream: its ledger lists no finished era.")
        first = self.ledger.eras[0]
        self.fingerprint: str = first.chain  # of the source, the settings and the first era's tokens
        self.validation: Store | None = None
        self.hashed: dict[str, HashedFile] = {}  # what the corpus's files were when the run began, by their paths
        if first.validation is not None:
            self.validation = self._store(0, "validation", first.validation)

    def ended(self) -> bool:
        """Read what the ledger holds by now, and return whether the corpus has been read to its end."""
        self.ledger.refresh()
        return self.ledger.end is not None

    @property
    def n_tokens(self) -> int:
        """The tokens to train on, so far."""
        return sum(era.tokens for era in self.ledger.eras)

    @property
    def n_documents(self) -> int:
        """The documents to train on, so far."""
        return sum(era.documents for era in self.ledger.eras)

    @property
    def text_bytes(self) -> int:
        """The bytes of their text, so far."""
        return sum(era.text_bytes for era in self.ledger.eras)

    def era(self, number: int) -> Store:
        """Return the store of an era; raises DataError where it is damaged or is not the one that the ledger lists."""
        return self._store(number, "train", self.ledger.eras[number].fingerprint)

    def check_tokenizer(self, fingerprint: str, vocab_size: int) -> None:
        """Refuse a tokenizer other than the one that wrote the stream."""
        self.era(0).check_tokenizer(fingerprint, vocab_size)

    def verify(self) -> None:
        """Read all eras whole, about 1 GB/s; DataError names the first file, and offset, that is not as written."""
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
    """Return what to do about a stream that is damaged."""
    return f"Delete {folder}: the corpus is read again, and becomes the same eras."


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the stream's lock inside, where it is free; yields whether it was. It never waits.

    Where the storage is read-only nobody writes, and there is nothing to hold.
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
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)
