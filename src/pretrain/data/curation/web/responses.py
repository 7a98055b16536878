"""HTTP responses as crawls store them, from untrusted servers: the page in one, in bounded memory."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from pretrain.data.curation.web.warc import GZIP_MAGIC, parse_headers

_HEADER_END = re.compile(rb"\r?\n\r?\n")  # some servers end its lines with \n alone


class UnusableError(Exception):
    """A response or page that gives no text: the reason by which it is counted."""


@dataclass(frozen=True)
class Response:
    """An HTTP response: its header fields and its body as it was sent, decoded."""

    headers: dict[str, str]
    body: bytes


def read_response(content: bytes, max_bytes: int) -> Response:
    """Return the page of a response record; raises UnusableError for what is none, or larger than `max_bytes`."""
    end = _HEADER_END.search(content)
    if end is None or not content.startswith(b"HTTP/"):
        raise UnusableError("no HTTP response")
    status = content[:64].split(b" ", 2)[1:2]
    if not (status and status[0][:3].isdigit() and status[0].startswith(b"2")):
        raise UnusableError("HTTP status is not 2xx")
    headers = parse_headers(content[: end.start()])
    body = content[end.end() :]
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = _without_chunks(body)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("text/html", "application/xhtml+xml") and (kind or not looks_like_html(body)):
        raise UnusableError("no HTML")
    body = _decoded(body, headers.get("content-encoding", "").strip().lower(), max_bytes)
    if len(body) > max_bytes:
        raise UnusableError("larger than html.max_bytes")
    return Response(headers, body)


def looks_like_html(body: bytes) -> bool:
    """Return whether the first bytes are those of a page."""
    head = body[:1024].lstrip().lower()
    return head.startswith((b"<!doctype html", b"<html")) or b"<html" in head


def _without_chunks(body: bytes) -> bytes:
    """Return a body without its chunk sizes; as it is if it has none, as some crawls store it."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = body.find(b"\r\n", at, at + 32)
        size_text = body[at:end].partition(b";")[0].strip() if end >= 0 else b""
        try:
            size = int(size_text, 16) if size_text[:1] not in (b"", b"+", b"-") else -1
        except ValueError:
            size = -1
        if size < 0:
            return body if not at else b"".join([*parts, body[at:]])
        if size == 0:
            return b"".join(parts)
        start = end + 2
        parts.append(body[start : start + size])
        at = start + size + 2
        if at >= len(body):
            return b"".join(parts)


def _decoded(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return a body without its compression, at most one byte more than `max_bytes`."""
    if encoding in ("", "identity", "utf-8", "none"):
        return body
    if encoding in ("gzip", "x-gzip", "deflate"):
        if encoding.endswith("gzip") and not body.startswith(GZIP_MAGIC[:2]):
            return body  # the crawl has decompressed it already
        for bits in (47, -15):
            try:
                return zlib.decompressobj(bits).decompress(body, max_bytes + 1)
            except zlib.error:
                continue
        raise UnusableError("damaged content-encoding")
    if encoding == "br":
        return body if looks_like_html(body) else _brotli(body, max_bytes)
    raise UnusableError("unknown content-encoding")


def _brotli(body: bytes, max_bytes: int) -> bytes:
    import brotli

    decoder, parts, size = brotli.Decompressor(), [], 0
    try:
        part = decoder.process(body, output_buffer_limit=1 << 20)
        while size <= max_bytes:
            parts.append(part)
            size += len(part)
            if decoder.is_finished() or (not part and decoder.can_accept_more_data()):
                break
            part = decoder.process(b"", output_buffer_limit=1 << 20)
    except brotli.error:
        raise UnusableError("damaged content-encoding") from None
    return b"".join(parts)[: max_bytes + 1]
