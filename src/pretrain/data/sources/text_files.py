"""Documents from text files: plain text, or a column of records, compressed or not, read as a stream."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from pretrain.config.setting import read_escapes, write_escapes
from pretrain.data.config import Format, TextFilesConfig
from pretrain.data.sources import column_files
from pretrain.data.sources.column_files import read_records, too_large
from pretrain.data.sources.corpus_files import FileSource
from pretrain.data.sources.source import Document, ResumeToken
from pretrain.data.sources.unchanged_files import BLOCK_BYTES
from pretrain.errors import ConfigError

END_OF_TEXT = "<|endoftext|>"  # stands between the documents of many published text files


class TextFiles(FileSource):
    """The texts of files."""

    config: TextFilesConfig

    def __init__(self, config: TextFilesConfig) -> None:
        if config.separator == "":
            raise ConfigError("data.separator='' separates nothing. Try data.separator=null for one document a file.")
        super().__init__(config)
        self.separator = None if config.separator is None else read_escapes(config.separator)
        self._resume_token: ResumeToken | None = None
        self._texts, self._separators = 0, 0  # plain text files read, and separators found in them
        self._ends_in_text = 0  # of END_OF_TEXT, in files read as one document

    def resume_token(self) -> ResumeToken | None:
        """Return the start of the current file; its position is the number of the file."""
        return self._resume_token

    def remarks(self) -> list[str]:
        """Return lines about files that were passed over, a separator that never occurred and one that is text."""
        lines = super().remarks()
        if self._ends_in_text:
            lines.append(
                f"'{END_OF_TEXT}' occurs {self._ends_in_text:,} times in {self.origin()} and is read as text. "
                f"If it stands between documents, set data.separator='{END_OF_TEXT}'"
            )
        if self.separator is not None and not self._separators:
            what = f"where text files are read whole ({self._texts:,})" if self._texts else "which has no plain text"
            lines.append(
                f"data.separator='{write_escapes(self.separator)}' does not occur in {self.origin()}, {what}. "
                "Leave it out, or check it: \\n is a new line, \\t a tab"
            )
        return lines

    def _reading_settings(self) -> list[str | None]:
        if self.separator is not None and (self.separator != self.config.separator or "\n" in self.separator):
            return [self.config.text_column, self.separator, "any line end"]
        return [self.config.text_column, self.config.separator]

    def read(self, position: Any = None) -> Iterator[Document]:
        files = list(self.files.items())
        self._texts, self._separators, self._ends_in_text = 0, 0, 0
        for number in range(position or 0, len(files)):
            self._resume_token = ResumeToken(self.kept, dict(self.skipped), number)
            yield from self._read_files(dict([files[number]]))

    def _read_stream(self, stream: IO[bytes], name: str, form: Format) -> Iterator[Document]:
        if form is Format.text:
            yield from self._read_text(stream, name)
            return
        column = self.config.text_column
        for origin, record in read_records(form, stream, name, {"data.text_column": column}, self.skipped):
            if isinstance(record.get(column), str):
                yield Document(record[column], origin)
            else:
                self.skipped["text is no string" if column in record else "no text column"] += 1

    def _read_text(self, stream: IO[bytes], name: str) -> Iterator[Document]:
        """Yield the stream as one document, or its parts between separators."""
        self._texts += 1
        if self.separator is None:
            for document in whole_document(stream, name, self.skipped):
                self._ends_in_text += document.text.count(END_OF_TEXT)
                yield document
            return
        for number, (part, is_separated) in enumerate(split_documents(stream, self.separator, name), start=1):
            self._separators += is_separated
            yield from decoded_document(part, f"{name}:{number}", self.skipped)


def decoded_document(content: bytes, name: str, skipped: Counter[str]) -> Iterator[Document]:
    """Yield a document of UTF-8; count one that is none in `skipped`."""
    try:
        yield Document(content.decode(), name)
    except UnicodeDecodeError:
        skipped["invalid UTF-8"] += 1


def whole_document(stream: IO[bytes], name: str, skipped: Counter[str]) -> Iterator[Document]:
    """Yield a file of plain text as one document."""
    content = stream.read(column_files.MAX_DOCUMENT_BYTES + 1)
    if len(content) > column_files.MAX_DOCUMENT_BYTES:
        raise too_large(name, "Set the string between its documents, such as data.separator='<|endoftext|>'.")
    yield from decoded_document(content, name, skipped)


def _separating(separator: str) -> tuple[re.Pattern[bytes], int]:
    """Return the pattern of a separator with any line ends, and its greatest length in bytes."""
    lines = separator.replace("\r\n", "\n").encode().split(b"\n")
    return re.compile(rb"\r?\n".join(map(re.escape, lines))), len(b"\r\n".join(lines))


def split_documents(stream: IO[bytes], separator: str, name: str) -> Iterator[tuple[bytes, bool]]:
    """Yield each part and whether a separator follows it; no part after a final separator."""
    pattern, longest = _separating(separator)
    buffer, count = bytearray(), 0
    while block := stream.read(BLOCK_BYTES):
        searched = max(0, len(buffer) - longest + 1)  # a separator may straddle two blocks
        buffer += block
        start = 0
        while match := pattern.search(buffer, max(searched, start)):
            yield bytes(buffer[start : match.start()]), True
            start, count = match.end(), count + 1
        del buffer[:start]
        if len(buffer) > column_files.MAX_DOCUMENT_BYTES:
            raise too_large(f"{name}:{count + 1}", f"Check data.separator='{write_escapes(separator)}'.")
    if buffer or not count:
        yield bytes(buffer), False
