"""Documents from files of this machine: plain text, or a column of records, compressed or not, read as a stream."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from pretrain.data.config import Format, TextFilesConfig
from pretrain.data.escapes import read_escapes, write_escapes
from pretrain.data.sources import column_files
from pretrain.data.sources.column_files import read_records, too_large
from pretrain.data.sources.compressed_files import opened
from pretrain.data.sources.corpus_files import FilePosition, find_files, hash_corpus, hash_files
from pretrain.data.sources.file_formats import FileKind, kind_of_file
from pretrain.data.sources.source import Document, ResumeToken, Source, printable
from pretrain.data.sources.unchanged_files import BLOCK_BYTES
from pretrain.errors import ConfigError


class TextFiles(Source):
    """The documents of a file, of a folder's files, or of the files that match a pattern."""

    config: TextFilesConfig

    def __init__(self, config: TextFilesConfig) -> None:
        if config.separator == "":
            raise ConfigError("data.separator='' separates nothing. Try data.separator=null for one document a file.")
        super().__init__(config)
        self.separator = None if config.separator is None else read_escapes(config.separator)
        self.files = find_files(config.path, "data.path", self.passed_over)
        self._place = FilePosition(self.files)
        self.validation_files = (
            find_files(config.validation_path, "data.validation_path", self.passed_over)
            if config.validation_path
            else None
        )
        self._resume_token: ResumeToken | None = None
        self._texts, self._separators = 0, 0  # plain text files that are read, and separators found in them

    def resume_token(self) -> ResumeToken | None:
        """Return the beginning of the file that is being read."""
        return self._resume_token

    def validation_documents(self) -> Iterator[Document] | None:
        """Return the documents of `data.validation_path`; None where it is not set."""
        if self.validation_files is None:
            return None
        origin = f"data.validation_path={printable(self.config.validation_path)}"
        return self._screened(self._read_files(self.validation_files), origin)

    def remarks(self) -> list[str]:
        """Return what should be known of the files: those left out, and a separator that separated nothing."""
        found = super().remarks()
        if self.separator is not None and not self._separators:
            what = f"where text files are read whole ({self._texts:,})" if self._texts else "which has no plain text"
            found.append(
                f"data.separator='{write_escapes(self.separator)}' does not occur in {self._origin()}, {what}. "
                "Leave it out, or check it: \\n is a new line, \\t a tab"
            )
        return found

    def fingerprint(self) -> str:
        """Return the hash of all files' formats and bytes, in order, and of the column and separator."""
        reading: list[str | None] = [self.config.text_column, self.config.separator]
        if self.separator is not None and (self.separator != self.config.separator or "\n" in self.separator):
            reading = [self.config.text_column, self.separator, "any line end"]
        hash_set = partial(hash_files, kind_of=self._kind, hashed=self.hashed)
        return hash_corpus(reading, (self.files, self.validation_files or {}), hash_set)

    def share_read(self) -> float | None:
        """Return which share of the files' bytes has been read, 0 to 1."""
        return self._place.share()

    def _origin(self) -> str:
        return f"data.path={printable(self.config.path)}"

    def _read(self, place: Any = None) -> Iterator[Document]:
        files = list(self.files.items())
        self._texts, self._separators = 0, 0
        for number in range(place or 0, len(files)):
            self._resume_token = ResumeToken(self.kept, dict(self.skipped), number)
            yield from self._read_file(*files[number])

    def _read_files(self, files: dict[str, Path]) -> Iterator[Document]:
        for name, path in files.items():
            yield from self._read_file(name, path)

    def _kind(self, path: Path) -> FileKind:
        return kind_of_file(path, self.config.format)

    def _read_file(self, name: str, path: Path) -> Iterator[Document]:
        shown, kind, column = printable(name), self._kind(path), self.config.text_column
        was = self.hashed.get(str(path))
        with opened(path, kind.compression, partial(self._place.enter, path), was) as stream:
            if kind.form is Format.text:
                yield from self._read_text(stream, shown)
                return
            for place, record in read_records(kind.form, stream, shown, {"data.text_column": column}, self.skipped):
                if isinstance(record.get(column), str):
                    yield Document(record[column], place)
                else:
                    self.skipped["text is no string" if column in record else "no text column"] += 1

    def _read_text(self, stream: IO[bytes], name: str) -> Iterator[Document]:
        """Yield the whole stream as one document, or its parts between separators."""
        self._texts += 1
        if self.separator is None:
            yield from _whole(stream, name, self.skipped)
            return
        for number, (part, is_separated) in enumerate(_split(stream, self.separator, name), start=1):
            self._separators += is_separated
            yield from _decoded(part, f"{name}:{number}", self.skipped)


def _decoded(content: bytes, name: str, skipped: Counter[str]) -> Iterator[Document]:
    try:
        yield Document(content.decode(), name)
    except UnicodeDecodeError:
        skipped["invalid UTF-8"] += 1


def _whole(stream: IO[bytes], name: str, skipped: Counter[str]) -> Iterator[Document]:
    """Yield a file of plain text as one document."""
    content = stream.read(column_files.MAX_DOCUMENT_BYTES + 1)
    if len(content) > column_files.MAX_DOCUMENT_BYTES:
        raise too_large(name, "Set the string between its documents, such as data.separator='<|endoftext|>'.")
    yield from _decoded(content, name, skipped)


def _separating(separator: str) -> tuple[re.Pattern[bytes], int]:
    """Return what finds a separator, its line ends being those of Unix or of Windows, and how long a find may be."""
    lines = separator.replace("\r\n", "\n").encode().split(b"\n")
    return re.compile(rb"\r?\n".join(map(re.escape, lines))), len(b"\r\n".join(lines))


def _split(stream: IO[bytes], separator: str, name: str) -> Iterator[tuple[bytes, bool]]:
    """Yield what lies between separators, and whether one follows; nothing after one that ends the stream."""
    pattern, longest = _separating(separator)
    buffer, count = bytearray(), 0
    while block := stream.read(BLOCK_BYTES):
        searched = max(0, len(buffer) - longest + 1)  # a separator may straddle two blocks
        buffer += block
        start = 0
        while found := pattern.search(buffer, max(searched, start)):
            yield bytes(buffer[start : found.start()]), True
            start, count = found.end(), count + 1
        del buffer[:start]
        if len(buffer) > column_files.MAX_DOCUMENT_BYTES:
            raise too_large(f"{name}:{count + 1}", f"Check data.separator='{write_escapes(separator)}'.")
    if buffer or not count:
        yield bytes(buffer), False
