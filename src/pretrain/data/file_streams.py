"""Files as streams of bytes, decompressed by their suffix; damage becomes a DataError that names the file."""

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from pretrain.errors import DataError

BLOCK_BYTES = 1 << 20
ZSTD_BLOCK_BYTES = 1 << 12  # of compressed bytes: zstd shrinks zeros 30,000-fold, and one block's output is held whole


@contextmanager
def opened(path: Path, decompress: bool = True) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, through gzip, xz or zstd where its suffix says so.

    Raises DataError, naming the file, where it cannot be opened or read, is truncated or damaged.
    """
    import zstandard

    try:
        with path.open("rb") as file:
            yield _decompressed(file, path.suffix.lower()) if decompress else file
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError) as error:
        raise DataError(
            f"{str(path)!r} cannot be read to its end, so it is truncated, damaged or not readable: {error}. "
            "Fetch it again or leave it out."
        ) from error


def _decompressed(file: IO[bytes], suffix: str) -> IO[bytes]:
    if suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if suffix == ".xz":
        return lzma.LZMAFile(file)
    if suffix == ".zst":
        return io.BufferedReader(_ZstdStream(file), BLOCK_BYTES)
    return file


class _ZstdStream(io.RawIOBase):
    """One or more zstd frames. The library's own reader takes a truncated file for a complete one."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.frame: Any = None  # the decompressor of the frame being read; none between frames
        self.output = memoryview(b"")
        self.pending = b""  # compressed bytes read but not decompressed

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with decompressed bytes and return how many; 0 at the end. Raises EOFError if truncated."""
        while not self.output:
            block = self.pending or self.file.read(ZSTD_BLOCK_BYTES)
            if not block:
                if self.frame is not None:
                    raise EOFError("the last zstd frame is incomplete")
                return 0
            self._decompress(block)
        count = min(len(buffer), len(self.output))
        buffer[:count] = self.output[:count]
        self.output = self.output[count:]
        return count

    def _decompress(self, block: bytes) -> None:
        import zstandard

        if self.frame is None:
            self.frame = zstandard.ZstdDecompressor().decompressobj()
        self.output = memoryview(self.frame.decompress(block))
        self.pending = self.frame.unused_data if self.frame.eof else b""
        if self.frame.eof:
            self.frame = None
