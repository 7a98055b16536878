"""The ledger of a stream: one JSON line for each finished era, with the stream position after it.

Lines are only appended, each by one synced write, so a crash can leave only a torn last line, which is ignored. Each
line has a hash of itself and of all lines before it.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.data.token_store.format import unreadable
from pretrain.errors import DataError
from pretrain.files.atomic_files import sync_to_disk
from pretrain.files.records import Count, read_record
from pretrain.files.untrusted_files import open_own, open_regular, parse_json

MAX_BYTES = 1 << 28  # about 400,000 eras


@dataclass(frozen=True)
class StreamPosition:
    """The position in a corpus, as totals from its start."""

    documents: Count  # read from the source
    duplicates: Count  # of them, dropped as exact duplicates
    held_out: Count  # of them, validation documents by hash after era 0, so not used
    skipped: dict[str, Count]  # dropped by the source, by reason
    last_document: str  # xxh3_64 of the last text, 16 hexadecimal digits: checks that a resumed source is the same


@dataclass(frozen=True)
class Era:
    """One finished era: its token store, and the stream position after its last document."""

    number: Count
    documents: Count  # for training
    tokens: Count
    text_bytes: Count
    fingerprint: str  # of the store
    validation: str | None  # fingerprint of the validation store; era 0 only
    hashes: str  # sha256 of the file of its documents' hashes
    reached: StreamPosition
    chain: str  # hash of this line and of all before it


class Ledger:
    """The lines of a stream's ledger, read as they appear; any number of processes may read while one appends."""

    def __init__(self, folder: Path) -> None:
        """Read the ledger; a missing file is an empty ledger. Raises DataError as `refresh` does."""
        self.path = folder / "ledger.jsonl"
        self.eras: list[Era] = []
        self.end: StreamPosition | None = None  # once the corpus has been read to its end
        self._chain = folder.name  # which tells apart the streams of other texts and settings
        self._bytes = 0  # of whole lines
        self.refresh()

    def refresh(self) -> None:
        """Read the lines appended since the last call; an incomplete last line is ignored.

        Raises DataError if a line before the last is damaged or out of order.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        if size == self._bytes:
            return
        if size < self._bytes:
            raise DataError(f"{self.path} has become shorter: eras that this run has read were deleted.")
        if size > MAX_BYTES:
            raise DataError(f"{self.path} is larger than the {MAX_BYTES:,} bytes allowed for a ledger.")
        try:
            with open_regular(self.path) as file:
                file.seek(self._bytes)
                *lines, rest = file.read(size - self._bytes).split(b"\n")
        except (OSError, ValueError) as error:
            raise unreadable(self.path, error) from error
        for number, line in enumerate(lines):
            if not self._take(line):
                if number == len(lines) - 1 and not rest:
                    return
                raise DataError(
                    f"{self.path} is damaged in line {len(self.eras) + 1}. Delete {self.path.parent}: the corpus is "
                    "read again into the same eras."
                )
            self._bytes += len(line) + 1

    def append(self, era: dict[str, Any] | None, reached: StreamPosition) -> None:
        """Append the line of an era; if `era` is None, of the end of the corpus.

        A torn last line is dropped. Only the process that holds the stream's lock may call it.
        """
        record = {"era": era, "reached": asdict(reached)}
        line = json.dumps(record | {"chain": self._chained(record)}).encode() + b"\n"
        new = not self.path.exists()
        try:
            handle = open_own(self.path, os.O_WRONLY | os.O_APPEND)
        except ValueError as error:
            raise unreadable(self.path, error) from error
        with os.fdopen(handle, "ab") as file:
            file.truncate(self._bytes)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_to_disk(self.path.parent)
        self.refresh()

    def _chained(self, record: dict[str, Any]) -> str:
        return hashlib.sha256(f"{self._chain} {json.dumps(record, sort_keys=True)}".encode()).hexdigest()[:32]

    def _take(self, line: bytes) -> bool:
        """Add one line and return whether it is valid."""
        try:
            record = parse_json(line)
            chain = record.pop("chain")
            if self.end is not None or chain != self._chained(record):
                return False
            reached = read_record(StreamPosition, record["reached"], "reached")
            era = record["era"] and read_record(
                Era, record["era"] | {"reached": record["reached"], "chain": chain}, "era"
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return False
        if era is None:
            self.end = reached
        elif era.number == len(self.eras):
            self.eras.append(era)
        else:
            return False
        self._chain = chain
        return True
