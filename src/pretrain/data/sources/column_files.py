"""Records of files with columns: JSON lines, a JSON array, CSV, TSV and parquet, read as a stream.

Every reader yields each record with its place, <file>:<line or number>, and counts in `skipped` what is no record, by
reason. `columns` are those that have to be there, by the setting that names each.
"""

import codecs
import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO, Any

from pretrain.data.config import Format
from pretrain.data.sources.compressed_files import one_line
from pretrain.data.sources.source import printable
from pretrain.data.sources.unchanged_files import BLOCK_BYTES
from pretrain.errors import DataError

MAX_DOCUMENT_BYTES = 1 << 30  # a document is held in memory whole: beyond this it is a mistake or a decompression bomb


MAX_FIELD_CHARACTERS = 1 << 26  # of CSV, whose parser holds four bytes for each


BYTE_ORDER_MARK = b"\xef\xbb\xbf"


Records = Iterator[tuple[str, dict[str, Any]]]


def read_records(form: Format, stream: IO[bytes], name: str, columns: dict[str, str], skipped: Counter[str]) -> Records:
    """Yield the records of a file in one of the formats that have columns.

    Raises DataError where the file lacks one of the columns, or is not of that format at all.
    """
    return _READERS[form](stream, name, columns, skipped)


def lines_of(stream: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers, from 1 on; DataError for one that no memory should hold."""
    for number, line in enumerate(iter(lambda: stream.readline(MAX_DOCUMENT_BYTES + 1), b""), start=1):
        if len(line) > MAX_DOCUMENT_BYTES:
            raise too_large(f"{name}:{number}", "Write one document a line.")
        yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def too_large(place: str, remedy: str) -> DataError:
    """Return the error for a document that no memory should hold."""
    return DataError(f"{place} is over {MAX_DOCUMENT_BYTES:,} bytes as one document. {remedy}")


def missing_column(name: str, column: str, present: Any, setting: str = "data.text_column") -> DataError:
    """Return the error for a file whose records have no such column; `present` names those that they have."""
    columns = ", ".join(printable(key)[:80] for key in sorted(present)[:40])
    return DataError(f"{name} has no {setting}={printable(column)}. Try one of its columns: {columns or 'none'}.")


def _check_columns(name: str, columns: dict[str, str], present: Any) -> None:
    for setting, column in columns.items():
        if column not in present:
            raise missing_column(name, column, present, setting)


def _json_lines(stream: IO[bytes], name: str, columns: dict[str, str], skipped: Counter[str]) -> Records:
    """Yield the JSON object of each line."""
    first_record = True
    for number, line in lines_of(stream, name):
        record = _parse(line, name, number)
        if isinstance(record, str):
            skipped[record] += 1
        elif record is not None:
            if first_record:
                _check_columns(name, columns, record)
            first_record = False
            yield f"{name}:{number}", record


def _parse(line: bytes, name: str, number: int) -> dict[str, Any] | str | None:
    """Return the JSON object of a line, or the reason to skip it, or None for a blank line."""
    if number == 1 and line.startswith(b"["):
        raise DataError(
            f'{name} is one JSON array. Read it by data.format=json, or write one object a line: {{"text": "..."}}.'
        )
    if not line.strip():
        return None
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        return "invalid UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    return record if isinstance(record, dict) else "not a JSON object"


def _json(stream: IO[bytes], name: str, columns: dict[str, str], skipped: Counter[str]) -> Records:
    """Yield the objects of one JSON array; where the file does not begin with one, of its lines."""
    head = stream.peek(64) if hasattr(stream, "peek") else b""
    if not head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
        yield from _json_lines(stream, name, columns, skipped)
        return
    first_record = True
    for number, record in enumerate(_Array(stream, name), start=1):
        if not isinstance(record, dict):
            skipped["not a JSON object"] += 1
            continue
        if first_record:
            _check_columns(name, columns, record)
        first_record = False
        yield f"{name}:{number}", record


class _Array:
    """The values of a JSON array, read as a stream that holds little more than one of them."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.stream, self.name = stream, name
        self.decode = codecs.getincrementaldecoder("utf8")("surrogateescape").decode  # a bad byte is its document's
        self.parse = json.JSONDecoder().raw_decode
        self.text, self.place, self.ended, self.count = "", 0, False, 0

    def __iter__(self) -> Iterator[Any]:
        """Yield the values; DataError where the file is no array, or is broken off."""
        expected = "["
        while (sign := self._next_sign()) == expected or (sign == "]" and expected == ","):
            self.place += 1
            if sign == "]" or self._next_sign() == "]":
                return
            value = self._value()
            expected = ","
            yield value
        raise self._broken()

    def _value(self) -> Any:
        """Return the value that begins at `place`."""
        while True:
            try:
                value, end = self.parse(self.text, self.place)
            except RecursionError:
                raise self._broken() from None
            except ValueError:  # perhaps the rest of it has not been read yet
                if self.ended:
                    raise self._broken() from None
            else:
                if end < len(self.text) or self.ended:
                    self.place, self.count = end, self.count + 1
                    return value
            self._read()

    def _next_sign(self) -> str:
        """Return the next character that is no white space; nothing at the end of the file."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in " \t\r\n\ufeff":
                self.place += 1
            if self.place < len(self.text) or self.ended:
                return self.text[self.place : self.place + 1]
            self._read()

    def _read(self) -> None:
        """Read on: as much again as is waiting, so that no value is parsed often."""
        waiting = self.text[self.place :]
        if len(waiting) > MAX_DOCUMENT_BYTES:
            raise too_large(f"{self.name}:{self.count + 1}", "Write one JSON object a line.")
        block = self.stream.read(max(BLOCK_BYTES, len(waiting)))
        self.text, self.place, self.ended = waiting + self.decode(block, final=not block), 0, not block

    def _broken(self) -> DataError:
        return DataError(
            f"{self.name} is no JSON array behind its first {self.count:,} values. Mend it, or write one JSON object "
            "a line."
        )


def _csv(stream: IO[bytes], name: str, columns: dict[str, str], skipped: Counter[str]) -> Records:
    return _rows(stream, name, columns, skipped, ",;\t|")


def _tsv(stream: IO[bytes], name: str, columns: dict[str, str], skipped: Counter[str]) -> Records:
    return _rows(stream, name, columns, skipped, "\t")


def _rows(stream: IO[bytes], name: str, columns: dict[str, str], skipped: Counter[str], delimiters: str) -> Records:
    """Yield the rows below the heading, as Python's csv module reads them: fields may be quoted and hold line ends.

    The delimiter is the first of those under which the heading has the columns.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    lines = ((number, line.decode("utf8", "surrogateescape")) for number, line in lines_of(stream, name))
    first, heading = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    names, delimiter = _heading(heading, name, columns, delimiters)
    rows = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    while True:
        number = first + rows.line_num + 1  # of the line that the row begins with
        try:
            row = next(rows, None)
        except csv.Error as error:
            skipped["field too long" if "field limit" in str(error) else "not CSV"] += 1
            continue
        if row is None:
            return
        if len(row) != len(names):
            skipped["wrong number of fields"] += 1 if row else 0  # a blank line is none
        elif not _is_utf8(row):
            skipped["invalid UTF-8"] += 1
        else:
            yield f"{name}:{number}", dict(zip(names, row, strict=True))


def _is_utf8(row: list[str]) -> bool:
    """Return whether no byte of a row had to be read as a surrogate."""
    try:
        "".join(row).encode()
    except UnicodeEncodeError:
        return False
    return True


def _heading(heading: str, name: str, columns: dict[str, str], delimiters: str) -> tuple[list[str], str]:
    """Return the names of the columns and the delimiter between them."""
    found = []
    for delimiter in delimiters:
        try:
            names = next(csv.reader([heading], delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        if all(column in names for column in columns.values()):
            doubled = [column for column in columns.values() if names.count(column) > 1]
            if doubled:
                raise DataError(f"{name} has two columns called {printable(doubled[0])}. Give one another name.")
            return names, delimiter
        found.append(names)
    names = max(found, key=len, default=[])
    _check_columns(name, columns, names)
    raise AssertionError  # a column was missing


def _parquet(stream: IO[bytes], name: str, columns: dict[str, str], skipped: Counter[str]) -> Records:
    """Yield the rows of some columns, read a few at a time; all but a label's column have to hold text."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(stream)
        _check_columns(name, columns, file.schema_arrow.names)
        wanted = list(dict.fromkeys(columns.values()))
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=wanted):
            values = [_values(batch.column(column), column == columns.get("data.label_column")) for column in wanted]
            for row in zip(*values, strict=True):
                number += 1
                try:
                    record = [value.decode() if isinstance(value, bytes) else value for value in row]
                except UnicodeDecodeError:
                    skipped["invalid UTF-8"] += 1
                else:
                    yield f"{name}:{number}", dict(zip(wanted, record, strict=True))
    except pa.ArrowException as error:
        named = " ".join(f"{setting}={printable(column)}" for setting, column in columns.items())
        raise DataError(
            f"{name} cannot be read as parquet with text in {named}: {one_line(error)}. Try another file or column."
        ) from error


def _values(array: Any, may_be_number: bool) -> list[Any]:
    """Return the values of a column, text as bytes: a bad row must not stop the rest."""
    import pyarrow as pa

    if may_be_number and (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        return list(array.to_pylist())
    return list(array.cast(pa.large_binary()).to_pylist())


_READERS: dict[Format, Callable[[IO[bytes], str, dict[str, str], Counter[str]], Records]] = {
    Format.jsonl: _json_lines, Format.json: _json, Format.csv: _csv, Format.tsv: _tsv, Format.parquet: _parquet
}  # fmt: skip
