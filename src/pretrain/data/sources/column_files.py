"""Records of files with columns: JSON lines, a JSON array, CSV, TSV and parquet, read as a stream.

Every reader yields each record with its origin, <file>:<line or number>, and counts in `skipped`, by reason, what is
not a record. `columns` maps settings to the columns that they name, which the file must have.
"""

import codecs
import csv
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import IO, Any

from pretrain.data.config import Format
from pretrain.data.sources.compressed_files import BYTE_ORDER_MARK, head_of, one_line
from pretrain.data.sources.file_formats import HEAD_BYTES
from pretrain.data.sources.source import printable
from pretrain.data.sources.unchanged_files import BLOCK_BYTES
from pretrain.errors import DataError

MAX_DOCUMENT_BYTES = 1 << 30  # a document is held in memory: a larger one is a mistake or a decompression bomb
MAX_FIELD_CHARACTERS = 1 << 26  # of CSV, whose parser needs four bytes for each
LINES_AHEAD = 64  # that are looked at for where a quotation mark is closed

Records = Iterator[tuple[str, dict[str, Any]]]


def read_records(form: Format, stream: IO[bytes], name: str, columns: dict[str, str], skipped: Counter[str]) -> Records:
    """Yield the records of a file in one of the formats with columns.

    Raises DataError if the file lacks one of the columns or has another format.
    """
    return _READERS[form](stream, name, columns, skipped)


def later_json_lines(stream: IO[bytes], name: str, skipped: Counter[str]) -> Records:
    """Yield the objects of a part of a file of JSON lines that does not begin where the file does.

    The format and the columns are those of the file's beginning, so that neither is looked for here.
    """
    return _objects(json_lines(stream, name), name, {}, skipped)


def lines_of(stream: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number, from 1; DataError above MAX_DOCUMENT_BYTES."""
    for number, line in enumerate(iter(lambda: stream.readline(MAX_DOCUMENT_BYTES + 1), b""), start=1):
        if len(line) > MAX_DOCUMENT_BYTES:
            raise too_large(f"{name}:{number}", "Write one document a line.")
        yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def table_lines(stream: IO[bytes], name: str, *, has_heading: bool) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a table as `lines_of`; those of old Macs end with a bare \\r.

    That is so if the heading ends with one, below which quoted fields may have \\n; without a heading, if the beginning
    has no \\n.
    """
    head = head_of(stream, HEAD_BYTES)
    if not (_BARE_HEADING.match(head) if has_heading else b"\r" in head and b"\n" not in head):
        yield from lines_of(stream, name)
        return
    before, rest = 0, b""
    while block := stream.read(BLOCK_BYTES):
        *lines, rest = (rest + block).splitlines(keepends=True)  # of bytes: at \n, \r\n and \r alone
        for number, line in enumerate(lines, start=before + 1):
            yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
        before += len(lines)
        if len(rest) > MAX_DOCUMENT_BYTES:
            raise too_large(f"{name}:{before + 1}", "Write one document a line.")
    if rest:
        yield before + 1, rest


def json_lines(stream: IO[bytes], name: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yield each line's JSON object, or the reason why it is none, with its origin; blank lines are skipped."""
    for number, line in lines_of(stream, name):
        if not line.strip():
            continue
        value: Any
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError:
            value = "invalid UTF-8"
        except (ValueError, RecursionError):
            value = "not JSON"
        else:
            value = value if isinstance(value, dict) else _NO_OBJECT
        yield f"{name}:{number}", value


def too_large(origin: str, remedy: str) -> DataError:
    """Return the error for a document above MAX_DOCUMENT_BYTES."""
    return DataError(f"{origin} is over {MAX_DOCUMENT_BYTES:,} bytes as one document. {remedy}")


def missing_column(name: str, column: str, present: Any, setting: str = "data.text_column") -> DataError:
    """Return the error for a file without a column; `present` are its column names."""
    columns = ", ".join(printable(key)[:80] for key in sorted(present)[:40])
    return DataError(f"{name} has no {setting}={printable(column)}. Try one of its columns: {columns or 'none'}.")


def _check_columns(name: str, columns: dict[str, str], present: Any) -> None:
    for setting, column in columns.items():
        if column not in present:
            raise missing_column(name, column, present, setting)


def _check_distinct(name: str, columns: dict[str, str], present: list[str]) -> None:
    if doubled := [column for column in columns.values() if present.count(column) > 1]:
        raise DataError(f"{name} has two columns called {printable(doubled[0])}. Give one another name.")


_BARE_HEADING = re.compile(rb"[^\r\n]*\r[^\n]")
_NOT_ALWAYS_TEXT = ("label_column", "date_column")  # of parquet, where JSON may have numbers too
_NEVER_CLOSED = "lines of a quoted field that never ends"
_NO_OBJECT = "not a JSON object"
_NOT_JSON = object()  # stands for a value of an array that Python does not read


def _objects(
    values: Iterator[tuple[str, dict[str, Any] | str]], name: str, columns: dict[str, str], skipped: Counter[str]
) -> Records:
    """Yield the objects, after a check of the first one's columns; count the others by reason."""
    is_first = True
    for origin, value in values:
        if isinstance(value, str):
            skipped[value] += 1
            continue
        if is_first:
            _check_columns(name, columns, value)
        is_first = False
        yield origin, value


def _is_array(stream: IO[bytes]) -> bool:
    return head_of(stream, 64).lstrip().startswith(b"[")


def _json_lines(stream: IO[bytes], name: str, columns: dict[str, str], skipped: Counter[str]) -> Records:
    """Yield the JSON object of each line."""
    if _is_array(stream):
        raise DataError(
            f'{name} is one JSON array. Read it by data.format=json, or write one object a line: {{"text": "..."}}.'
        )
    return _objects(json_lines(stream, name), name, columns, skipped)


def _json(stream: IO[bytes], name: str, columns: dict[str, str], skipped: Counter[str]) -> Records:
    """Yield the objects of a JSON array; of the lines, if the file does not begin with an array."""
    if not _is_array(stream):
        return _json_lines(stream, name, columns, skipped)
    values = ((f"{name}:{number}", value) for number, value in enumerate(_Array(stream, name), start=1))
    objects = (
        (origin, value if isinstance(value, dict) else "not JSON" if value is _NOT_JSON else _NO_OBJECT)
        for origin, value in values
    )
    return _objects(objects, name, columns, skipped)


_ANY_INTEGER = json.JSONDecoder(parse_int=len)


class _Array:
    """The values of a JSON array, read as a stream: memory holds little more than one value."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.stream, self.name = stream, name
        self.decode = codecs.getincrementaldecoder("utf8")("surrogateescape").decode  # bad bytes spoil one document
        self.parse = json.JSONDecoder().raw_decode
        self.text, self.position, self.ended, self.count = "", 0, False, 0

    def __iter__(self) -> Iterator[Any]:
        """Yield the values of the array, and of further ones after it, as in files that were joined.

        Raises DataError if the file is no array, is truncated, or has anything else after its end.
        """
        while self._next_sign() == "[":
            self.position += 1
            yield from self._values()
        if not self.ended or self.position < len(self.text):
            raise self._broken()

    def _values(self) -> Iterator[Any]:
        """Yield the values up to the end of the array that has begun."""
        while self._next_sign() != "]":
            yield self._value()
            if (sign := self._next_sign()) != ",":
                if sign != "]":
                    raise self._broken()
                break
            self.position += 1
        self.position += 1

    def _value(self) -> Any:
        """Return the value that begins at `position`."""
        while True:
            try:
                value, end = self._parse()
            except RecursionError:
                raise self._broken() from None
            except ValueError:  # its rest may not have been read yet
                if self.ended:
                    raise self._broken() from None
            else:
                if end < len(self.text) or self.ended:
                    self.position, self.count = end, self.count + 1
                    return value
            self._read()

    def _parse(self) -> tuple[Any, int]:
        """Return the value at `position`, `_NOT_JSON` if an integer in it is too long for Python, and its end."""
        try:
            return self.parse(self.text, self.position)
        except json.JSONDecodeError:
            raise
        except ValueError:  # more digits than sys.get_int_max_str_digits()
            _, end = _ANY_INTEGER.raw_decode(self.text, self.position)
            return _NOT_JSON, end

    def _next_sign(self) -> str:
        """Return the next character that is not white space; "" at the end."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in " \t\r\n\ufeff":
                self.position += 1
            if self.position < len(self.text) or self.ended:
                return self.text[self.position : self.position + 1]
            self._read()

    def _read(self) -> None:
        """Read at least as much as is unparsed, so that no value is parsed often."""
        rest = self.text[self.position :]
        if len(rest) > MAX_DOCUMENT_BYTES:
            raise too_large(f"{self.name}:{self.count + 1}", "Write one JSON object a line.")
        block = self.stream.read(max(BLOCK_BYTES, len(rest)))
        self.text, self.position, self.ended = rest + self.decode(block, final=not block), 0, not block

    def _broken(self) -> DataError:
        return DataError(
            f"{self.name} is no JSON array after its first {self.count:,} values. Repair it, or write one JSON object "
            "a line."
        )


def _csv(stream: IO[bytes], name: str, columns: dict[str, str], skipped: Counter[str]) -> Records:
    return _rows(stream, name, columns, skipped, ",;\t|")


def _tsv(stream: IO[bytes], name: str, columns: dict[str, str], skipped: Counter[str]) -> Records:
    return _rows(stream, name, columns, skipped, "\t")


def _rows(stream: IO[bytes], name: str, columns: dict[str, str], skipped: Counter[str], delimiters: str) -> Records:
    """Yield the rows below the heading, read by Python's csv module.

    Fields may be quoted and hold line ends. The delimiter is the first of those that give the heading the columns.
    In a table with tabs a quotation mark that does not quote a field is text.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    encoded = table_lines(stream, name, has_heading=True)
    lines = ((number, line.decode("utf8", "surrogateescape")) for number, line in encoded)
    first, heading = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    for _ in range(LINES_AHEAD):
        if delimiters == "\t" or heading.count('"') % 2 == 0:
            break  # all quoted names of columns are closed
        first, following = next(lines, (first, ""))
        heading += following
    names, delimiter = _heading(heading, name, columns, delimiters)
    texts: Iterator[str] = (line for _, line in lines)
    if delimiters == "\t":
        texts = _all_quoted(texts, len(names))
    rows = csv.reader(texts, delimiter=delimiter, strict=True)
    while True:
        number = first + rows.line_num + 1  # first line of the row
        try:
            row = next(rows, None)
        except csv.Error as error:
            if "unexpected end" in str(error):  # what it swallowed may be most of the file
                skipped[_NEVER_CLOSED] += first + rows.line_num - number + 1
            else:
                skipped["field too long" if "field limit" in str(error) else "not CSV"] += 1
            continue
        if row is None:
            return
        if len(row) != len(names):
            skipped["wrong number of fields"] += 1 if row else 0  # a blank line has none
        elif not _is_utf8(row):
            skipped["invalid UTF-8"] += 1
        else:
            yield f"{name}:{number}", dict(zip(names, row, strict=True))


def _all_quoted(lines: Iterator[str], fields: int) -> Iterator[str]:
    """Yield the lines of a table with tabs; those with quotation marks that quote no field are rewritten as CSV.

    Many such tables, as those of GLUE, never quote: a text that begins with a quotation mark would swallow the rows up
    to the next one. Those that spreadsheets and pandas write quote as CSV does.
    """
    ahead: deque[str] = deque()
    is_open = False  # whether a quoted field goes on
    while line := ahead.popleft() if ahead else next(lines, ""):
        if is_open:
            is_open = line.count('"') % 2 == 0
        elif '"' in line:
            is_row, is_open = _parsed([line], fields)
            is_full = line.count("\t") == fields - 1
            if is_full and not is_row and not (is_open and _goes_on(line, lines, ahead, fields)):
                quoted = (field.replace('"', '""') for field in line.rstrip("\r\n").split("\t"))
                line, is_open = '"' + '"\t"'.join(quoted) + '"\n', False
        yield line


def _parsed(lines: list[str], fields: int) -> tuple[bool, bool]:
    """Return whether lines are one row with so many fields, and whether a quoted field is open at their end."""
    try:
        rows = list(csv.reader(lines, delimiter="\t", strict=True))
    except csv.Error as error:
        return False, "unexpected end" in str(error)
    return len(rows) == 1 and len(rows[0]) == fields, False


def _goes_on(line: str, lines: Iterator[str], ahead: deque[str], fields: int) -> bool:
    """Return whether a field that a line leaves open goes on in the next ones, which are added to `ahead`.

    It does if the next line is no row of its own. If it could be, the line with the next quotation mark has to close
    a field of a whole row, and the table two columns: of more, as many tabs are no accident.
    """
    row = [line]
    for number in range(LINES_AHEAD):
        if number == len(ahead):
            if not (following := next(lines, "")):
                return False
            ahead.append(following)
        row.append(ahead[number])
        if row[-1].count("\t") != fields - 1:
            return True
        if '"' in row[-1]:
            return fields == 2 and _parsed(row, fields)[0]
    return False


def _is_utf8(row: list[str]) -> bool:
    """Return whether all bytes of a row were decodable, so that it has no surrogate."""
    try:
        "".join(row).encode()
    except UnicodeEncodeError:
        return False
    return True


def _heading(heading: str, name: str, columns: dict[str, str], delimiters: str) -> tuple[list[str], str]:
    """Return the names of the columns and the delimiter between them."""
    headings = []
    for delimiter in delimiters:
        try:
            names = next(csv.reader([heading], delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        if all(column in names for column in columns.values()):
            _check_distinct(name, columns, names)
            return names, delimiter
        headings.append(names)
    names = max(headings, key=len, default=[])
    _check_columns(name, columns, names)
    raise AssertionError  # a column was missing


def parquet_records(
    stream: IO[bytes], name: str, columns: dict[str, str], skipped: Counter[str], row_groups: range | None = None
) -> Records:
    """Yield the wanted columns of each row, of all row groups or of some; columns but labels and dates must hold text.

    Rows are numbered from 1 within the row groups that are read.
    """
    import pyarrow as pa
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)
        _check_columns(name, columns, file.schema_arrow.names)
        _check_distinct(name, columns, file.schema_arrow.names)
        wanted = list(dict.fromkeys(columns.values()))
        others = {column for setting, column in columns.items() if setting.endswith(_NOT_ALWAYS_TEXT)}
        number = 0
        for batch in file.iter_batches(256, row_groups, wanted):
            values = [_values(batch.column(column), column in others) for column in wanted]
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
    """Return the values of a column; text as bytes, so that a bad row stops no other."""
    import pyarrow as pa

    kind = array.type
    if may_be_number and (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return list(array.to_pylist())
    if pa.types.is_temporal(array.type):
        array = array.cast(pa.string())
    return list(array.cast(pa.large_binary()).to_pylist())


_READERS: dict[Format, Callable[[IO[bytes], str, dict[str, str], Counter[str]], Records]] = {
    Format.jsonl: _json_lines, Format.json: _json, Format.csv: _csv, Format.tsv: _tsv, Format.parquet: parquet_records
}  # fmt: skip
