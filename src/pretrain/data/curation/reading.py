"""The documents of a unit: text, origin, address, date and license of each record that can be used."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from pretrain.config.setting import read_escapes
from pretrain.data.config import Format, HuggingFaceConfig
from pretrain.data.curation.engine import Task
from pretrain.data.curation.licenses import COLUMN, UNKNOWN, spdx_name
from pretrain.data.curation.units import HUGGING_FACE, Part, hashes_of
from pretrain.data.curation.web.page_licenses import CONFLICT, PAGE_EVIDENCE
from pretrain.data.sources.column_files import later_json_lines, parquet_records, read_records
from pretrain.data.sources.compressed_files import opened
from pretrain.data.sources.hugging_face import HuggingFace
from pretrain.data.sources.source import fault_of, printable
from pretrain.data.sources.text_files import decoded_document, split_documents, whole_document

EVIDENCE = ("none", CONFLICT, *PAGE_EVIDENCE, "source", "column")  # of a license: from weakest to strongest
MAX_FIELD = 2000  # characters of an address or a date that are kept
_DAY = re.compile(r"(\d{4})(?:-?(\d\d))?(?:-?(\d\d))?")


@dataclass(frozen=True)
class Reading:
    """How the records of a source become documents: its settings as plain JSON."""

    kind: str
    license: str
    columns: dict[str, str]  # by setting; "sources.<name>.text_column" and so on
    separator: str | None
    hugging_face: dict[str, Any]
    web: dict[str, Any]  # of sources of pages and crawls


@dataclass(frozen=True)
class RawDocument:
    """A document as it was read."""

    text: str
    origin: str  # source/file:record
    url: str | None = None
    date: str | None = None
    license: str = UNKNOWN  # SPDX name
    evidence: str = "none"
    metadata: str | None = None  # what a page says about itself, as JSON


def read_part(task: Task, part: Part, reading: Reading, skipped: Counter[str]) -> Iterator[RawDocument]:
    """Yield the usable documents of a part of a file; count the others in `skipped` by reason.

    Raises DataError for a file that is damaged, lacks a column, or has changed since it was hashed.
    """
    if part.form == HUGGING_FACE:
        records = _of_hugging_face(reading, part, skipped)
        yield from _usable(records, reading, skipped)
        return
    with opened(Path(part.path), part.compression, hashed=hashes_of(task, part)) as stream:
        if part.form == Format.text.name:
            yield from _usable(_of_text(stream, part, reading.separator, skipped), reading, skipped)
        else:
            yield from _usable(_of_table(stream, part, reading, skipped), reading, skipped)


Fields = tuple[str, dict[str, Any]]  # origin within the source, and the values by role: text, url, date, license


def _of_text(stream: IO[bytes], part: Part, separator: str | None, skipped: Counter[str]) -> Iterator[Fields]:
    name = printable(part.file)
    if separator is None:
        for document in whole_document(stream, name, skipped):
            yield f"{name}:1", {"text": document.text}
        return
    for number, (content, _) in enumerate(split_documents(stream, read_escapes(separator), name), start=1):
        for document in decoded_document(content, f"{name}:{number}", skipped):
            yield document.name, {"text": document.text}


def _of_table(stream: IO[bytes], part: Part, reading: Reading, skipped: Counter[str]) -> Iterator[Fields]:
    name, form = printable(part.file), Format[part.form]
    if form is Format.parquet:
        records = parquet_records(stream, name, reading.columns, skipped, range(part.start, part.stop))
    elif form is Format.jsonl and part.compression is None:
        stream.seek(part.start)
        limited = io.BufferedReader(_Limited(stream, part.stop - part.start))
        if part.start:  # an object within the file may lack a column that the first one has
            records = later_json_lines(limited, name, skipped)
        else:
            records = read_records(form, limited, name, reading.columns, skipped)
    else:
        records = read_records(form, stream, name, reading.columns, skipped)
    for origin, record in records:
        file, _, number = origin.rpartition(":")
        yield f"{file}:{int(number) + part.record}", _by_role(record, reading.columns)


def _of_hugging_face(reading: Reading, part: Part, skipped: Counter[str]) -> Iterator[Fields]:
    from pretrain.data.sources.column_files import missing_column

    source = HuggingFace(HuggingFaceConfig(**reading.hugging_face))
    name = printable(part.file)
    for number, record in enumerate(source.records(list(reading.columns.values())), start=1):
        if number == 1:
            for setting, column in reading.columns.items():
                if column not in record:
                    raise missing_column(source.origin(), column, record, setting)
        yield f"{name}:{number}", _by_role(record, reading.columns)


def _by_role(record: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    return {key.rpartition(".")[2].removesuffix("_column"): record.get(column) for key, column in columns.items()}


def _usable(records: Iterator[Fields], reading: Reading, skipped: Counter[str]) -> Iterator[RawDocument]:
    for origin, fields in records:
        if not isinstance(fields["text"], str):
            skipped["text is no string"] += 1
            continue
        text = fields["text"].removeprefix("\ufeff")
        if fault := fault_of(text):
            skipped[fault] += 1
            continue
        document = RawDocument(text, origin, _plain(fields.get("url")), _plain(fields.get("date")))
        if reading.license == COLUMN:
            written = fields.get("license")
            name = spdx_name(written[:MAX_FIELD]) if isinstance(written, str) else UNKNOWN
            yield replace(document, license=name, evidence="none" if name == UNKNOWN else "column")
        else:
            name = spdx_name(reading.license)
            yield replace(document, license=name, evidence="none" if name == UNKNOWN else "source")


def _plain(value: Any) -> str | None:
    """Return an address or a date as text that can be stored; None where there is none."""
    if value is None or isinstance(value, float | list | dict | bool):
        return None
    text = str(value).strip()[:MAX_FIELD]
    return text.encode("utf8", "replace").decode() or None


def day_of(date: str | None) -> int:
    """Return a date as the number YYYYMMDD, unknown parts 0; 0 for none."""
    found = _DAY.match(date or "")
    return int(f"{found[1]}{found[2] or '00'}{found[3] or '00'}") if found else 0


class _Limited(io.RawIOBase):
    """The next bytes of a stream, so many and no more."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        super().__init__()
        self._stream, self._left = stream, size

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; return the number of bytes, 0 at the end."""
        data = self._stream.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)
