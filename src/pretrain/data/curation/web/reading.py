"""The documents of web sources: pages of .html files, responses of WARC files, extracted texts of WET files."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from pretrain.data.curation.config import ArchiveSource, CorpusSource
from pretrain.data.curation.engine import Task
from pretrain.data.curation.licenses import PAGE, UNKNOWN, spdx_name
from pretrain.data.curation.reading import MAX_FIELD, RawDocument, Reading
from pretrain.data.curation.units import HTML, WARC, WET, Part, hashes_of
from pretrain.data.curation.web.config import HTMLConfig
from pretrain.data.curation.web.page_licenses import CONFLICT, header_reservations
from pretrain.data.curation.web.page_process import NOT_REPRODUCIBLE, page_process
from pretrain.data.curation.web.responses import UnusableError, read_response
from pretrain.data.curation.web.warc import (
    MAX_HEADER_BYTES,
    Record,
    read_records,
)
from pretrain.data.sources.compressed_files import opened
from pretrain.data.sources.source import fault_of, printable
from pretrain.errors import ConfigError, DataError

PACKAGES = {"trafilatura": "trafilatura", "lxml": "lxml", "resiliparse": "resiliparse"}  # that change a text
DAMAGED = "damaged record"
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)


def library_versions(key: str) -> dict[str, str]:
    """Return the versions of the libraries that read pages; ConfigError if one is missing, `key` names the source."""
    try:
        importlib.metadata.version("lxml_html_clean")  # trafilatura does not import without it
        return {name: importlib.metadata.version(package) for name, package in PACKAGES.items()}
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"{key} needs the package {error.name}, which is not installed. Install it: pip install -e '.[curate]'."
        ) from None


def web_settings(source: CorpusSource, html: HTMLConfig, domains: list[str] | None) -> dict[str, Any]:
    """Return what reads the pages of a source, as plain JSON; nothing for a source of another kind."""
    web: dict[str, Any] = {"damaged": source.damaged.value} if isinstance(source, ArchiveSource) else {}
    if source.reads_pages:
        plain = {
            name: value.value if isinstance(value, Enum) else value
            for name, value in asdict(html).items() if name != "license_domains"
        }  # fmt: skip
        return {**web, "html": plain, "domains": domains if source.license == PAGE else None}
    return {**web, "max_bytes": html.max_bytes, "domains": None} if web else {}


def trusted_domains(path: str | None) -> list[str] | None:
    """Return the domains whose pages are believed about their license; None: all. Raises ConfigError."""
    if path is None:
        return None
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"html.license_domains={printable(path)} cannot be read: {error}. Name a text file with a domain a line."
        ) from error
    lines = (line.partition("#")[0].strip().lower() for line in text.splitlines())
    return sorted({line for line in lines if line})


def read_web_part(task: Task, part: Part, reading: Reading, skipped: Counter[str]) -> Iterator[RawDocument]:
    """Yield the usable documents of a part of a file of pages or of a crawl; count the others in `skipped`.

    Raises DataError for a file that is damaged, unless its source skips that, or has changed since it was hashed.
    """
    pages = _Pages(reading, skipped)
    is_gzip = part.compression == "gzip" and part.form != HTML
    compression = None if is_gzip else part.compression
    with opened(Path(part.path), compression, hashed=hashes_of(task, part)) as stream:
        if part.form == HTML:
            yield from _page_of_file(stream, part, pages)
        else:
            records = _records(stream, part, is_gzip, reading, skipped)
            yield from (pages.of_text if part.form == WET else pages.of_response)(part, records)


class _Pages:
    """Makes documents of pages."""

    def __init__(self, reading: Reading, skipped: Counter[str]) -> None:
        self.reading, self.skipped = reading, skipped
        self.web = reading.web
        self._believed = None if self.web["domains"] is None else frozenset(self.web["domains"])
        self._process = page_process(json.dumps(self.web["html"], sort_keys=True)) if "html" in self.web else None

    def of_response(self, part: Part, records: Iterator[Record]) -> Iterator[RawDocument]:
        """Yield the documents of responses."""
        most = self.web["html"]["max_bytes"]
        for record in records:
            try:
                if record.content is None:
                    raise UnusableError("larger than html.max_bytes")
                response = read_response(record.content, most)
            except UnusableError as error:
                self.skipped[str(error)] += 1
                continue
            charset = _CHARSET.search(response.headers.get("content-type", ""))
            document = RawDocument(
                "", f"{printable(part.file)}:{record.position}", _address(record.headers), _date(record.headers)
            )
            reserved = header_reservations(response.headers)
            yield from self.of_page(response.body, charset[1] if charset else None, document, reserved)

    def of_text(self, part: Part, records: Iterator[Record]) -> Iterator[RawDocument]:
        """Yield the documents of extracted texts."""
        for record in records:
            assert record.content is not None
            try:
                text = record.content.decode().strip()
            except UnicodeDecodeError:
                self.skipped["invalid UTF-8"] += 1
                continue
            if fault := fault_of(text):
                self.skipped[fault] += 1
                continue
            name = spdx_name(self.reading.license)
            origin = f"{printable(part.file)}:{record.position}"
            yield RawDocument(
                text, origin, _address(record.headers), _date(record.headers), name,
                "none" if name == UNKNOWN else "source",
            )  # fmt: skip

    def of_page(
        self, content: bytes, charset: str | None, document: RawDocument, reserved: list[str]
    ) -> Iterator[RawDocument]:
        """Yield the document of a page: `document` with its text and what the page says about itself."""
        assert self._process is not None
        try:
            page = self._process.read(content, charset)
        except UnusableError as error:
            self.skipped[str(error)] += 1
            return
        if fault := fault_of(page["text"]):
            self.skipped[fault] += 1
            return
        url = document.url or _plain(page["address"])
        license_name, evidence = self._license(page, url)
        facts = {
            "title": page["title"], "author": page["author"], "licenses": page["licenses"],
            "reservations": reserved + page["reservations"],
        }  # fmt: skip
        facts = {name: _plain(value) for name, value in facts.items() if value}
        yield RawDocument(
            page["text"], document.origin, url, document.date or _plain(page["date"]), license_name, evidence,
            json.dumps(facts, sort_keys=True) if facts else None,
        )  # fmt: skip

    def _license(self, page: dict[str, Any], url: str | None) -> tuple[str, str]:
        if self.reading.license != PAGE:
            name = spdx_name(self.reading.license)
            return name, "none" if name == UNKNOWN else "source"
        if page["license"] == UNKNOWN:
            return UNKNOWN, CONFLICT if page["evidence"] == CONFLICT else "none"
        if self._believed is not None and not self._believed & set(_domains(url)):
            return UNKNOWN, "none"
        return page["license"], page["evidence"]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.encode("utf8", "replace").decode() if isinstance(value, str) else value


def _domains(url: str | None) -> list[str]:
    """Return the host of an address and the domains above it."""
    try:
        parts = (urlsplit(url or "").hostname or "").split(".")
    except ValueError:
        return []
    return [".".join(parts[number:]) for number in range(len(parts))]


def _page_of_file(stream: IO[bytes], part: Part, pages: _Pages) -> Iterator[RawDocument]:
    most = pages.web["html"]["max_bytes"]
    content = stream.read(most + 1)
    if len(content) > most:
        pages.skipped["larger than html.max_bytes"] += 1
        return
    yield from pages.of_page(content, None, RawDocument("", printable(part.file)), [])


def _records(stream: IO[bytes], part: Part, is_gzip: bool, reading: Reading, skipped: Counter[str]) -> Iterator[Record]:
    most = reading.web["html"]["max_bytes"] if "html" in reading.web else reading.web["max_bytes"]
    kind = {WARC: "response", WET: "conversion"}[part.form]

    def wanted(headers: dict[str, str]) -> int | None:
        return most + MAX_HEADER_BYTES if headers.get("warc-type", "").lower() == kind else None

    def damaged(offset: int, reason: str) -> None:
        if reading.web["damaged"] == "fail":
            raise DataError(
                f"{printable(part.file)} has a damaged record at byte {offset:,}: {reason}. Fetch the file again, or "
                "go on after it and count it: sources.<name>.damaged=skip."
            )
        skipped[DAMAGED] += 1

    end = part.stop if is_gzip or part.compression is None else sys.maxsize  # else the stream is longer than the file
    for record in read_records(stream, (part.start, end), is_gzip, wanted, damaged):
        if record.content is None and part.form == WET:
            skipped["larger than html.max_bytes"] += 1
        else:
            yield record


def _address(headers: dict[str, str]) -> str | None:
    return headers.get("warc-target-uri", "").strip("<> ")[:MAX_FIELD] or None


def _date(headers: dict[str, str]) -> str | None:
    return headers.get("warc-date", "")[:10] or None


def not_reproducible(unusable: dict[str, int]) -> dict[str, int]:
    """Return of the counts of unusable documents those that another machine may read."""
    return {reason: unusable[reason] for reason in NOT_REPRODUCIBLE if reason in unusable}
