"""Records of WARC files (ISO 28500) from untrusted crawls, in bounded memory.

A damaged record is an error or is counted, as the caller wants, and reading goes on at the next one that can be found.
Offsets are bytes in the file as it lies on the disk, so that a record can be found again.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

BLOCK_BYTES = 1 << 16
MAX_HEADER_BYTES = 1 << 17  # of a record's own header, and of the header of the response in it
MEMBER_HEAD_BYTES = 4096  # of compressed bytes, enough to see how a member begins
MAX_PASSED_BYTES = 1 << 26  # of a record too large to use that are decompressed to find its end
GZIP_MAGIC = b"\x1f\x8b\x08"
_VERSION = b"WARC/1"
_BEGIN = re.compile(rb"WARC/1\.\d\r?\n")
_BEGIN_BYTES = 10


class DamagedRecordError(Exception):
    """A record that cannot be read: why, in words that stand after the name of its file."""

    def __init__(self, reason: str, is_passed: bool = False) -> None:
        super().__init__(reason)
        self.is_passed = is_passed  # whether the next record begins where reading stands


@dataclass(frozen=True)
class Record:
    """One record. `content` is None if it is larger than what was asked for."""

    offset: int  # of the record, or of the gzip member in which it lies
    number: int  # of the records before it in the same member
    headers: dict[str, str]  # names in small letters
    content: bytes | None

    @property
    def position(self) -> str:
        """Return the offset, and the number after it within a member of several records: unique in its file."""
        return f"{self.offset}" if not self.number else f"{self.offset}+{self.number}"


class _Plain:
    """Bytes of records that lie one after another in a stream."""

    def __init__(self, stream: IO[bytes], start: int, stop: int) -> None:
        self._stream, self._position, self._stop = stream, start, stop
        self._back = b""
        self.offset, self.number = start, 0
        if start:
            stream.seek(start)

    def begin(self) -> bool:
        """Go to the next record; False at the end."""
        while byte := self._take(1):
            if byte not in b"\r\n":
                self._push(byte)
                self.offset = self._position
                return self.offset < self._stop
        return False

    def read(self, size: int) -> bytes:
        """Return so many bytes, fewer only at the end of the file."""
        parts: list[bytes] = []
        while size and (part := self._take(min(size, BLOCK_BYTES))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def unread(self, data: bytes) -> None:
        """Give bytes back, which the next `read` returns."""
        self._push(data)

    def finish(self) -> None:
        """Pass over the two line ends after a record whose content was read."""
        rest = self.read(4)
        self.unread(rest.lstrip(b"\r\n"))

    def pass_over(self, size: int) -> None:
        """Pass over the rest of a record; raises DamagedRecordError if the file ends in it."""
        while size > 0:
            part = self._take(min(size, 1 << 20))
            if not part:
                raise DamagedRecordError("the file ends inside a record")
            size -= len(part)

    def recover(self) -> bool:
        """Go to the next offset that looks like the start of a record; False if there is none."""
        if self._stream.seekable():
            self._position, self._back = self._stream.seek(self.offset + 1), b""
        window = self._take(BLOCK_BYTES)
        while window:
            if begin := _BEGIN.search(window):
                self._push(window[begin.start() :])
                return True
            tail = window[1 - _BEGIN_BYTES :]
            more = self._take(BLOCK_BYTES)
            window = tail + more if more else b""
        return False

    def _take(self, size: int) -> bytes:
        if self._back:
            part, self._back = self._back[:size], self._back[size:]
        else:
            part = self._stream.read(size)
        self._position += len(part)
        return part

    def _push(self, data: bytes) -> None:
        self._back = data + self._back
        self._position -= len(data)


class _Members:
    """Bytes of records in gzip members of a file, as crawls write them: usually one record a member."""

    def __init__(self, stream: IO[bytes], start: int, stop: int) -> None:
        self._stream, self._position, self._stop = stream, start, stop  # position of the next compressed byte
        self._member: zlib._Decompress | None = None
        self._pending, self._back = b"", b""
        self.offset, self.number = start, 0
        stream.seek(start)

    def begin(self) -> bool:
        """Go to the next record, in this member or the next one; False at the end."""
        if self._member is not None or self._back:
            while byte := self.read(1):
                if byte not in b"\r\n":
                    self.unread(byte)
                    self.number += 1
                    return True
        if self._position >= self._stop or (not self._pending and not self._fill()):
            return False
        self.offset, self.number = self._position, 0
        if not self._pending.startswith(GZIP_MAGIC[: len(self._pending)]):
            raise DamagedRecordError("no gzip member begins where one should")
        self._member = zlib.decompressobj(31)
        return True

    def read(self, size: int) -> bytes:
        """Return so many bytes, fewer only at the end of the member; raises DamagedRecordError."""
        parts = [self._back[:size]]
        self._back = self._back[size:]
        size -= len(parts[0])
        while size and self._member is not None:
            part = self._decompress(min(size, 1 << 20))
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _decompress(self, size: int) -> bytes:
        assert self._member is not None
        if not self._pending and not self._fill():
            raise DamagedRecordError("the file ends inside a record")
        before = len(self._pending)
        try:
            part = self._member.decompress(self._pending, size)
        except zlib.error as error:
            raise DamagedRecordError(f"its compressed bytes are damaged ({error})") from None
        ended = self._member.eof
        self._pending = self._member.unused_data if ended else self._member.unconsumed_tail
        self._position += before - len(self._pending)
        if ended:
            self._member = None
        return part

    def unread(self, data: bytes) -> None:
        """Give bytes back, which the next `read` returns."""
        self._back = data + self._back

    def finish(self) -> None:
        """Read to the end of the member if nothing follows, so that its checksum was compared."""
        rest = self.read(4)
        if rest.strip(b"\r\n"):
            self.unread(rest)
        elif self._member is not None and (more := self.read(1)):
            self.unread(more)

    def pass_over(self, size: int) -> None:
        """Pass over the rest of a record; of a very large one without decompressing it."""
        for _ in range(0, min(size, MAX_PASSED_BYTES), 1 << 20):
            if len(self.read(min(size, 1 << 20))) < min(size, 1 << 20):
                return
            size -= 1 << 20
        if size > 0:
            self._find_member()

    def recover(self) -> bool:
        """Go to the next member that begins with a record, after the start of this one; False if there is none."""
        self._position, self._pending = self._stream.seek(self.offset + 1), b""
        return self._find_member()

    def _find_member(self) -> bool:
        self._member, self._back = None, b""
        while True:
            at = record_start(self._pending)
            if at is not None:
                self._pending, self._position = self._pending[at:], self._position + at
                return self._position < self._stop
            passed = max(0, len(self._pending) - MEMBER_HEAD_BYTES)
            self._pending, self._position = self._pending[passed:], self._position + passed
            if not self._fill():
                self._position = self._stop
                self._pending = b""
                return False

    def _fill(self) -> bool:
        block = self._stream.read(BLOCK_BYTES)
        self._pending += block
        return bool(block)


def record_start(data: bytes) -> int | None:
    """Return the position in compressed bytes of the first gzip member that begins with a record, or None."""
    at = data.find(GZIP_MAGIC)
    while at >= 0:
        try:
            if zlib.decompressobj(31).decompress(data[at : at + MEMBER_HEAD_BYTES], len(_VERSION)) == _VERSION:
                return at
        except zlib.error:
            pass
        at = data.find(GZIP_MAGIC, at + 1)
    return None


def read_records(
    stream: IO[bytes],
    span: tuple[int, int],
    compressed: bool,
    wanted: Callable[[dict[str, str]], int | None],
    damaged: Callable[[int, str], object],
) -> Iterator[Record]:
    """Yield the records of a file that begin in a range of bytes.

    `wanted` gives, for the headers of a record, the most bytes of content to return, and None for one to pass over.
    `damaged` is called with offset and reason for each record that cannot be read; if it returns, reading goes on.
    """
    source = (_Members if compressed else _Plain)(stream, *span)
    while True:
        try:
            if not source.begin():
                return
            record = _read_record(source, wanted)
        except DamagedRecordError as error:
            damaged(source.offset, str(error))
            if not error.is_passed and not source.recover():
                return
            continue
        if record is not None:
            yield record


def _read_record(source: _Plain | _Members, wanted: Callable[[dict[str, str]], int | None]) -> Record | None:
    headers = _read_headers(source)
    try:
        size = int(headers.get("content-length", ""))
    except ValueError:
        size = -1
    if size < 0:
        raise DamagedRecordError("its header has no content-length")
    most = wanted(headers)
    offset, number = source.offset, source.number
    if most is None or size > most:
        source.pass_over(size)
        return None if most is None else Record(offset, number, headers, None)
    content = source.read(size)
    if len(content) < size:
        raise DamagedRecordError(f"it ends after {len(content):,} of {size:,} bytes")
    source.finish()
    if not _has_digest(headers.get("warc-block-digest", ""), content):
        following = source.read(_BEGIN_BYTES)
        source.unread(following)
        begins = following.startswith(_VERSION) or not following.strip(b"\r\n")
        is_passed = begins and not _BEGIN.search(content)  # else it may be cut, and the next record stands in it
        raise DamagedRecordError("its content does not have the sha1 of its header", is_passed)
    return Record(offset, number, headers, content)


def _read_headers(source: _Plain | _Members) -> dict[str, str]:
    head = b""
    while True:
        more = source.read(1024)
        begin = max(0, len(head) - 3)
        head += more
        if len(head) >= len(_VERSION) and not head.startswith(_VERSION):
            raise DamagedRecordError("it does not begin with WARC/1")
        end = head.find(b"\r\n\r\n", begin)
        if end >= 0:
            if _BEGIN.search(head, 1, end):
                raise DamagedRecordError("its header is cut")
            source.unread(head[end + 4 :])
            return parse_headers(head[:end])
        if not more:
            raise DamagedRecordError("the file ends inside its header" if head else "it is empty")
        if len(head) > MAX_HEADER_BYTES:
            raise DamagedRecordError(f"its header is longer than {MAX_HEADER_BYTES:,} bytes")


def parse_headers(head: bytes) -> dict[str, str]:
    """Return the fields of a header, names in small letters; of a name that stands twice the last."""
    headers: dict[str, str] = {}
    name = ""
    for line in head.decode("utf8", "replace").replace("\r\n", "\n").split("\n")[1:]:
        if line[:1] in (" ", "\t") and name:
            headers[name] += " " + line.strip()
            continue
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if colon:
            headers[name] = value.strip()
    return headers


def _has_digest(digest: str, content: bytes) -> bool:
    """Return whether content has the SHA-1 that its header gives; other digests are not checked."""
    kind, _, value = digest.partition(":")
    if kind.strip().lower() != "sha1" or len(value.strip()) != 32:
        return True
    found = base64.b32encode(hashlib.sha1(content, usedforsecurity=False).digest()).decode()
    return found == value.strip().upper()
