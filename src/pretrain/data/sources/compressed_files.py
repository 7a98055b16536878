"""Files as streams of decompressed bytes; damage raises a DataError that names the file."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from pretrain.data.sources.unchanged_files import BLOCK_BYTES, HashedFile, UnchangedFile
from pretrain.errors import DataError, printable
from pretrain.files.untrusted_files import open_regular

PACKED_BLOCK_BYTES = 1 << 12  # zstd compresses zeros 30,000-fold, and the output of a block is held in memory
MAX_WINDOW_BYTES = 1 << 31  # history of a decompressor: zstd --long=31, the maximum
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAGIC = {b"\x1f\x8b\x08": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BZ2_BLOCK = (b"1AY&SY", b"\x17rE8P\x90")  # after "BZh" and a digit: a block, or the end of an empty file


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Raise errors of opening, reading and decompressing a file as a DataError that names it."""
    import zstandard

    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError) as error:
        raise DataError(
            f"{printable(repr(str(path)))} cannot be read to its end, so it is truncated, damaged or not readable: "
            f"{one_line(error)}. Fetch it again or leave it out."
        ) from error


@contextmanager
def opened(
    path: Path,
    compression: str | None = None,
    on_open: Callable[[IO[bytes]], object] | None = None,
    hashed: HashedFile | None = None,
) -> Iterator[IO[bytes]]:
    """Open a regular file for reading bytes, decompressed by gzip, xz, zstd or bz2.

    `on_open` receives the compressed file. Raises DataError, naming the file, if it cannot be opened or read, is no
    regular file, is truncated or damaged, or differs from the block hashes `hashed`.
    """
    with file_errors(path):
        try:
            file = open_regular(path)
        except ValueError as error:
            raise not_regular(printable(repr(str(path))), error) from error
        with file:
            if hashed is not None:
                file = io.BufferedReader(UnchangedFile(file, hashed, path), BLOCK_BYTES)
            if on_open is not None:
                on_open(file)
            yield decompressed(file, compression)


def one_line(error: Exception) -> str:
    """Return a library's message about a file as one printable line of at most 300 characters."""
    return printable(" ".join(str(error).split()), one_line=True)[:300].rstrip(".")


def not_regular(file: str, reason: ValueError) -> DataError:
    """Return the error for a FIFO, a device, a socket or a folder named as a file."""
    return DataError(f"{file} cannot be read as text: {reason}. Write its text to a file, and name that.")


def head_of(stream: IO[bytes], size: int) -> bytes:
    """Return about `size` first bytes of a stream, without a byte order mark and without consuming them."""
    return stream.peek(size).removeprefix(BYTE_ORDER_MARK)  # type: ignore[attr-defined]


def compression_of(head: bytes) -> str | None:
    """Return the compression of a file by its first 16 bytes, or None."""
    if head[:3] == b"BZh" and head[4:10] in _BZ2_BLOCK:
        return "bz2"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def decompressed(file: IO[bytes], compression: str | None) -> IO[bytes]:
    """Return the decompressed stream; memory: MAX_WINDOW_BYTES and the output of one block."""
    if compression == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if compression in _FRAMES:
        return io.BufferedReader(_Unpacked(file, _FRAMES[compression]), BLOCK_BYTES)
    return file


class _ZstdFrame:
    """One zstd frame with the interface of the standard library's decompressors."""

    def __init__(self) -> None:
        import zstandard

        self._frame = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()
        self.needs_input = True

    def decompress(self, block: bytes, max_length: int) -> bytes:
        return self._frame.decompress(block)

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data


_FRAMES: dict[str | None, Callable[[], Any]] = {
    "xz": lambda: lzma.LZMADecompressor(memlimit=MAX_WINDOW_BYTES),
    "zstd": _ZstdFrame,
    "bz2": bz2.BZ2Decompressor,
}


class _Unpacked(io.RawIOBase):
    """One or more frames, each read to its end: a library's own reader may stop early without an error."""

    def __init__(self, file: IO[bytes], new_frame: Callable[[], Any]) -> None:
        self.file, self.new_frame = file, new_frame
        self.frame: Any = None  # decompressor of the current frame; None between frames
        self.frames = 0  # started so far
        self.output = memoryview(b"")
        self.pending = b""  # compressed bytes read but not decompressed

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer and return the number of bytes, 0 at the end; EOFError if truncated."""
        while not self.output:
            if self.frame is None and not self._begin_frame():
                return 0
            self._decompress()
        count = min(len(buffer), len(self.output))
        buffer[:count] = self.output[:count]
        self.output = self.output[count:]
        return count

    def _begin_frame(self) -> bool:
        """Start the next frame; return False at the end of the file."""
        while block := self._next_block():
            self.pending = block.lstrip(b"\0") if self.frames else block  # xz may pad its output with zeros
            if self.pending:
                self.frame = self.new_frame()
                self.frames += 1
                return True
        return False

    def _decompress(self) -> None:
        block = self._next_block() if self.frame.needs_input else b""
        if self.frame.needs_input and not block:
            raise EOFError("its last part is incomplete")
        self.output = memoryview(self.frame.decompress(block, BLOCK_BYTES))
        if self.frame.eof:
            self.pending, self.frame = self.frame.unused_data, None

    def _next_block(self) -> bytes:
        block = self.pending or self.file.read(PACKED_BLOCK_BYTES)
        self.pending = b""
        return block
