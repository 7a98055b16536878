"""The base of all sources: each yields its documents in an order that never changes.

The settings' `open()` returns it; a subclass of `Source` reads the raw documents; `Source`
drops those that no tokenizer can use and counts them by reason: documents in = kept + skipped.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import Any

from pretrain.data.config import DataConfig
from pretrain.data.sources.unchanged_files import HashedFile
from pretrain.errors import DataError
from pretrain.files.records import Count


class Part(Enum):
    """Which part of a source's document a `Document` is."""

    full = auto()
    head = auto()  # its end comes next
    end = auto()


@dataclass(frozen=True)
class Document:
    """One text of a corpus."""

    text: str
    name: str  # its origin, such as "novels.jsonl.xz:17" or "os.path"; control characters are escaped
    prompt_characters: int | None = None  # length of the prompt that the text begins with; the rest is the response
    label: str | None = None
    number: float | None = None  # to predict from the text, instead of a label
    second_text: str | None = None  # of a pair of texts with one label or number
    messages: tuple[tuple[str, str], ...] = ()  # role and content of each turn, of a conversation
    related: tuple[str, ...] = ()  # an anchor, its positive and hard negatives, if the document is of such texts
    part: Part = Part.full
    split_key: int | None = None  # documents with the same one go into the same split; None: the hash of the text


@dataclass(frozen=True)
class ResumeToken:
    """A position of a source, from which it can be read without reading the documents before it."""

    documents: Count  # before the position
    skipped: dict[str, Count]  # before the position, by reason
    position: Any  # in the source's own terms: plain JSON data


class Source:
    """The documents that one set of data settings names. A subclass reads them; this class screens them.

    A subclass has `read()`, `origin()` and `fingerprint()`; where it can be read on from the middle also
    `resume_token()`, for which `read()` takes the position.
    """

    stores: Path | None = None  # the folder of finished token stores and their tokenizer, of a source without text
    without_duplicates = False  # whether no text stands in it twice, so that none is looked for

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.skipped: Counter[str] = Counter()  # documents dropped since the last call of `documents`, by reason
        self.kept = 0  # documents yielded since then
        self.identity = ""  # result of `fingerprint` when the source was opened for preparation
        self.hashed: dict[str, HashedFile] = {}  # block hashes of its files at that time, by path
        self.passed_over: Counter[str] = Counter()  # files that are not read, by suffix or kind

    def documents(self, resume_token: ResumeToken | None = None) -> Iterator[Document]:
        """Return the training documents; all documents if no separate validation set is configured.

        `skipped` and `kept` restart at zero, or at the counts of the resume token.
        Raises DataError if the source cannot be read or has no text.
        """
        self.skipped.clear()
        self.kept = 0
        if resume_token is None:
            return self._screened(self.read(), self.origin())
        self.skipped.update(resume_token.skipped)
        self.kept = resume_token.documents
        return self._screened(self.read(resume_token.position), self.origin(), may_be_empty=True)

    def resume_token(self) -> ResumeToken | None:
        """Return the latest position that `documents` can resume from; None if only the start."""
        return None

    def validation_documents(self) -> Iterator[Document] | None:
        """Return the documents of the configured validation set; None if there is none.

        `skipped` goes on counting. Raises DataError as `documents` does.
        """
        return None

    def remarks(self) -> list[str]:
        """Return lines for the user about the source, after its documents have been read."""
        if not self.passed_over:
            return []
        return [f"{self.origin()}: files passed over: {self.passed_over.total():,} ({counted(self.passed_over)})"]

    def share_read(self) -> float | None:
        """Return the fraction of the training documents read, 0 to 1; None if unknown."""
        return None

    def provenance(self) -> dict[str, Any]:
        """Return what is known of the texts' origin and licenses, plain JSON below 64 kB; it goes where they go."""
        return {}

    def fingerprint(self) -> str:
        """Return 32 hexadecimal digits (xxh3_128) that change whenever the documents do."""
        raise NotImplementedError

    def check_unchanged(self) -> None:
        """Raise DataError if the source no longer has the fingerprint in `identity`.

        Files with block hashes were already compared while they were read.
        """
        if not self.hashed and self.fingerprint() != self.identity:
            raise DataError(
                f"{self.origin()} changed while it was being prepared, so the result is dropped. Start again once "
                "nothing changes it."
            )

    def check_as_opened(self) -> None:
        """Raise DataError if a file changed since the source was opened: a cheap check between eras.

        Sources whose files are compared block by block need none.
        """

    def wait_for_more(self, keep_waiting: Callable[[], bool]) -> bool:
        """Wait, after all documents were read, for later ones; return whether there are any.

        Waits no longer than `keep_waiting` returns True. Sources that never grow return False at once.
        """
        return False

    def remark_unread(self, provenance: dict[str, Any], documents: int) -> str | None:
        """Return a line on what came after an ended stream with this provenance, which read so many documents.

        None if nothing came. Sources that never grow have none.
        """
        return None

    def check_read_before(self, provenance: dict[str, Any]) -> None:
        """Raise DataError unless the source begins with what was read when it had this provenance.

        Sources that never grow need none: another content is another stream.
        """

    def read(self, position: Any = None) -> Iterator[Document]:
        """Return the raw documents, or those from the position of a resume token on."""
        raise NotImplementedError

    def origin(self) -> str:
        """Return the setting and value that an error message names."""
        raise NotImplementedError

    def _screened(self, documents: Iterator[Document], origin: str, may_be_empty: bool = False) -> Iterator[Document]:
        """Yield the usable documents; count the others in `skipped`."""
        is_empty = True
        for document in documents:
            text = document.text.removeprefix("\ufeff")
            if fault := fault_of(text):
                self.skipped[fault] += 1
            else:
                is_empty = False
                self.kept += 1
                yield replace(document, text=text)
        if is_empty and not may_be_empty:
            raise DataError(
                f"{origin} holds no text (documents skipped: {counted(self.skipped) or 'none'}). "
                "Name a source with non-empty UTF-8 text."
            )


def printable(name: object) -> str:
    """Return a file or column name, escaped so that it is safe to print and to store."""
    return repr(str(name))[1:-1]


def counted(counts: Counter[str]) -> str:
    """Return counts as text, largest first, names escaped: "12 .png, 3 .pdf"."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {printable(name)}" for name, count in ordered)


def fault_of(text: str) -> str | None:
    """Return why a text cannot be used, or None."""
    if not text or text.isspace():
        return "empty"
    if "\0" in text:
        return "NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which UTF-8 cannot
        return "lone surrogate"
    return None
