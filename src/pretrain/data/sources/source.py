"""Where text comes from: every source gives its documents one by one, in an order that never changes.

1. `open_source` picks the source by the settings' class.
2. The source's file reads raw documents: `python_docs.py`, `text_files.py`, `hugging_face.py`, `annotated_files.py`.
3. `Source` drops what no tokenizer can use, and counts it by reason: documents in = kept + skipped.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from pretrain.data.config import DataConfig
from pretrain.data.sources.unchanged_files import HashedFile
from pretrain.errors import DataError


class Part(Enum):
    """How much of a document of the source a `Document` is."""

    full = auto()
    head = auto()  # its end comes next
    end = auto()


@dataclass(frozen=True)
class Document:
    """One text of a corpus."""

    text: str
    name: str  # where it came from, such as "novels.jsonl.xz:17" or "os.path"; control characters are escaped
    prompt_characters: int | None = None  # the text begins with a prompt of so many, and the rest is its response
    label: str | None = None  # what kind of text it is
    part: Part = Part.full


@dataclass(frozen=True)
class ResumeToken:
    """A place in a source from which its documents can be read on, without reading all those before it again."""

    documents: int  # before this place
    skipped: dict[str, int]  # before this place, by reason
    place: Any  # as the source itself understands it: plain data that JSON can hold


class Source:
    """The documents that one set of data settings names. A subclass reads them; this class screens them."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.skipped: Counter[str] = Counter()  # documents dropped since `documents` was last called, by reason
        self.kept = 0  # documents given since then
        self.identity = ""  # what `fingerprint` returned when the source was opened to be prepared
        self.hashed: dict[str, HashedFile] = {}  # what its files were then, by their paths: none may change
        self.passed_over: Counter[str] = Counter()  # files that are not read, by suffix or by what they are

    def documents(self, resume_token: ResumeToken | None = None) -> Iterator[Document]:
        """Return the training documents, or all of them where no validation set of its own is configured.

        `skipped` and `kept` start again from nothing, or from the counts of the bookmark from which reading goes on.
        Raises DataError for a source that cannot be read or holds no text.
        """
        self.skipped.clear()
        self.kept = 0
        if resume_token is None:
            return self._screened(self._read(), self._origin())
        self.skipped.update(resume_token.skipped)
        self.kept = resume_token.documents
        return self._screened(self._read(resume_token.place), self._origin(), may_be_empty=True)

    def resume_token(self) -> ResumeToken | None:
        """Return the newest place to which `documents` can return at once; None where there is only the beginning."""
        return None

    def validation_documents(self) -> Iterator[Document] | None:
        """Return the documents of the configured validation set; None where the caller is to split off its own.

        `skipped` counts on. Raises DataError as `documents` does.
        """
        return None

    def remarks(self) -> list[str]:
        """Return what whoever prepares the source should know of it, once its documents have been read."""
        if not self.passed_over:
            return []
        return [f"{self._origin()}: files passed over: {self.passed_over.total():,} ({counted(self.passed_over)})"]

    def share_read(self) -> float | None:
        """Return which share of the training documents has been read, 0 to 1; None where that is not known."""
        return None

    def fingerprint(self) -> str:
        """Return 32 hexadecimal digits (xxh3_128) that change whenever the documents would."""
        raise NotImplementedError

    def check_unchanged(self) -> None:
        """Raise DataError where what was read need not be what `identity` stands for.

        Files that are hashed block by block have been compared while they were read.
        """
        if not self.hashed and self.fingerprint() != self.identity:
            raise DataError(
                f"{self._origin()} has changed while it was prepared, so nothing of it is kept. Start again "
                "once nothing changes it."
            )

    def check_as_opened(self) -> None:
        """Raise DataError where a file is another one than when the source was opened; cheap, and asked in between.

        Of files that are compared block by block as they are read, nothing is left to ask.
        """

    def _read(self, place: Any = None) -> Iterator[Document]:
        """Return the raw documents, or those from a bookmark's place on."""
        raise NotImplementedError

    def _origin(self) -> str:
        """Return the setting and value to name when the source turns out to be empty."""
        raise NotImplementedError

    def _screened(self, found: Iterator[Document], origin: str, may_be_empty: bool = False) -> Iterator[Document]:
        """Yield the usable documents; count the others in `skipped`."""
        none = True
        for document in found:
            text = document.text.removeprefix("\ufeff")
            if fault := _fault(text):
                self.skipped[fault] += 1
            else:
                none = False
                self.kept += 1
                yield replace(document, text=text)
        if none and not may_be_empty:
            raise DataError(
                f"{origin} holds no text (documents skipped: {counted(self.skipped) or 'none'}). "
                "Name a source with non-empty UTF-8 text."
            )


def printable(name: object) -> str:
    """Return a file or column name with control characters and lone surrogates escaped: safe to print and to store."""
    return repr(str(name))[1:-1]


def counted(counts: Counter[str]) -> str:
    """Return counts with what is counted, the most frequent first: "12 .png, 3 .pdf"; foreign names are escaped."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {printable(name)}" for name, count in ordered)


def _fault(text: str) -> str | None:
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
