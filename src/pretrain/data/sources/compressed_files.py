"""Files as streams of bytes, decompressed on the way; damage becomes a DataError that names the file."""

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

PACKED_BLOCK_BYTES = 1 << 12  # zstd shrinks zeros 30,000-fold, and what one block becomes is held whole


MAX_WINDOW_BYTES = 1 << 31  # of what a decompressor may look back on: zstd --long=31, the most that there is


_MAGIC = {
    b"\x1f\x8b\x08": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip


_BZ2_BLOCK = (b"1AY&SY", b"\x17rE8P\x90")  # what stands behind "BZh" and a digit: a block, or the end of an empty file


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn what opening, reading and decompressing a file raise into a DataError that names it."""
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
    """Open a regular file for reading bytes, through gzip, xz, zstd or bz2; `on_open` is given the file beneath.

    Raises DataError, naming the file, where it cannot be opened or read, is no regular file, is truncated or damaged,
    or is no longer what it was when it was `hashed`.
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
    """Return what a library says of a file, fit for one line of a terminal: it may quote the file."""
    return printable(" ".join(str(error).split()), one_line=True)[:300].rstrip(".")


def not_regular(file: str, reason: ValueError) -> DataError:
    """Return the error for a named file that is a FIFO, a device, a socket or a folder where a file is to be read."""
    return DataError(f"{file} cannot be read as text: {reason}. Write its text to a file, and name that.")


def compression_of(head: bytes) -> str | None:
    """Return the compression that the first 16 bytes of a file show, or None."""
    if head[:3] == b"BZh" and head[4:10] in _BZ2_BLOCK:
        return "bz2"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def decompressed(file: IO[bytes], compression: str | None) -> IO[bytes]:
    """Return a stream of what a file holds; memory is bounded by MAX_WINDOW_BYTES and what one block becomes."""
    if compression == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if compression in _FRAMES:
        return io.BufferedReader(_Unpacked(file, _FRAMES[compression]), BLOCK_BYTES)
    return file


class _ZstdFrame:
    """One zstd frame, as the standard library's decompressors have it. What one block becomes is held whole."""

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
    """One or more frames of a compression, each to its end: a library's own reader may take half a file for all."""

    def __init__(self, file: IO[bytes], new_frame: Callable[[], Any]) -> None:
        self.file, self.new_frame = file, new_frame
        self.frame: Any = None  # the decompressor of the frame being read; none between frames
        self.frames = 0  # begun so far
        self.output = memoryview(b"")
        self.pending = b""  # compressed bytes read but not decompressed

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with decompressed bytes and return how many; 0 at the end. Raises EOFError if truncated."""
        while not self.output:
            if self.frame is None and not self._begin_frame():
                return 0
            self._decompress()
        count = min(len(buffer), len(self.output))
        buffer[:count] = self.output[:count]
        self.output = self.output[count:]
        return count

    def _begin_frame(self) -> bool:
        """Start the next frame; return False where the file ends."""
        while block := self._next_block():
            self.pending = block.lstrip(b"\0") if self.frames else block  # xz may pad what it has written with zeros
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
