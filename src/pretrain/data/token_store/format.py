"""The files of a token store: layout, writing, and checks before use.

    manifest.json        what the store holds; written last and atomically, so its presence means complete
    shards/00000.tok     header, then little-endian tokens: two bytes each up to a vocabulary of 65,536, four beyond
    shards/00000.idx     header, then the end of every document as u64, counted in tokens within the shard
    shards/00000.names   header, then the origin of every document: one JSON string a line
    annotations.bin      only of data for fine-tuning: see annotations.py
    targets.bin          only of conversations: see annotations.py

The manifest determines all 64 bytes of a header, so the hashes in it are of the body, which follows the header: of the
whole body, and of its pieces (see piece_hashes.py). The manifest also holds a hash of itself; those of an earlier
version may lack it.
"""

import errno
import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from pretrain.data.token_store.piece_hashes import DIGITS, PieceHasher, piece_count
from pretrain.errors import CheckpointError, DataError
from pretrain.files import untrusted_files
from pretrain.files.records import AtLeast, Count, check_seal, read_record, shortened
from pretrain.files.untrusted_files import open_regular

FORMAT, VERSION = "pretrain token store", 1
MAX_JSON_BYTES = 16_000_000
BUFFER_BYTES = 1 << 22
SCANNED_TOKENS = 1 << 22  # checked together when a store is verified
HEADER = struct.Struct("<8sIIQQQ16sQ")
HEADER_FIELDS = ("magic", "version", "itemsize", "vocab_size", "n_tokens", "n_documents", "tokenizer", "reserved")
MAGIC = {"tok": b"PRETRTOK", "idx": b"PRETRIDX", "names": b"PRETRNAM"}

_OF_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ELOOP, errno.ENOTDIR)


@dataclass(frozen=True)
class Vocabulary:
    """Facts of a store's tokenizer."""

    vocab_size: Annotated[int, AtLeast(1)]
    tokenizer_fingerprint: str
    bos_id: Annotated[int, AtLeast(-1)]  # -1: documents have no first token
    eos_id: Count


@dataclass(frozen=True)
class _File:
    bytes: Annotated[int, AtLeast(HEADER.size)]
    sha256: str  # of the body
    pieces: str | None = None  # hashes of its pieces, hexadecimal; an earlier version wrote none


@dataclass(frozen=True)
class _Files:
    tok: _File
    idx: _File
    names: _File


@dataclass(frozen=True)
class _Shard:
    stem: str
    tokens: Annotated[int, AtLeast(1)]
    documents: Annotated[int, AtLeast(1)]
    text_bytes: Count
    files: _Files


@dataclass(frozen=True)
class _Manifest(Vocabulary):
    dtype: str
    n_tokens: Count
    n_documents: Count
    text_bytes: Count
    shards: list[_Shard]
    fingerprint: str


@contextmanager
def storage_errors(cache: Path) -> Iterator[None]:
    """Raise CheckpointError that names the folder if its storage cannot be written to."""
    try:
        yield
    except OSError as error:
        elsewhere = error.filename is not None and not Path(error.filename).is_relative_to(cache)
        if error.errno not in _OF_STORAGE or elsewhere:
            raise
        raise CheckpointError(
            f"prepared data cannot be written to {cache}: {os.strerror(error.errno)}. Make it writable and free some "
            "space, or use another folder: paths.cache_dir=/another/disk/cache."
        ) from error


def map_array(path: Path, dtype: npt.DTypeLike, count: int, offset: int = 0) -> npt.NDArray[Any]:
    """Return a memory map of `count` numbers from byte `offset`; DataError for a missing file."""
    if count == 0:
        return np.empty(0, dtype)
    try:
        with open_regular(path) as file:
            return np.asarray(np.memmap(file, dtype, "r", offset, (count,)))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error for a file of prepared data that can no longer be read."""
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return DataError(
        f"{path} cannot be read: {reason}. Prepared data must not be moved while a run reads it. If it was deleted, "
        "continue from the last checkpoint with resume=auto, and it is prepared again."
    )


def read_json(path: Path) -> Any:
    """Return the value of a JSON file; raise DataError if invalid or over 16 MB."""
    try:
        return untrusted_files.read_json(path, MAX_JSON_BYTES)
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({' '.join(str(error).split())[:200]}).") from None


def item_bytes(vocab_size: int) -> dict[str, int]:
    """Return the bytes of one item in each file of a shard."""
    return {"tok": 2 if vocab_size <= 65_536 else 4, "idx": 8, "names": 1}


def header(suffix: str, vocab_size: int, tokens: int, documents: int, tokenizer_fingerprint: str) -> bytes:
    """Return the 64 bytes at the start of a shard's file."""
    tokenizer = hashlib.sha256(tokenizer_fingerprint.encode()).digest()[:16]
    itemsize = item_bytes(vocab_size)[suffix]
    return HEADER.pack(MAGIC[suffix], VERSION, itemsize, vocab_size, tokens, documents, tokenizer, 0)


class ShardFile:
    """A file of the shard being written, opened only to flush a buffer."""

    def __init__(self, path: Path) -> None:
        self.path, self.bytes = path, HEADER.size
        self.buffer, self.hash, self.pieces = bytearray(), hashlib.sha256(), PieceHasher()
        path.write_bytes(bytes(HEADER.size))

    def write(self, data: bytes) -> None:
        """Append to the body."""
        self.buffer += data
        if len(self.buffer) >= BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        self.hash.update(self.buffer)
        self.pieces.update(self.buffer)
        with self.path.open("ab") as file:
            self.bytes += file.write(self.buffer)
        self.buffer.clear()

    def finish(self, head: bytes) -> dict[str, object]:
        """Write the header `head` and return the file's entry in the manifest."""
        self._flush()
        with self.path.open("r+b") as file:
            file.write(head)
            file.flush()
            os.fsync(file.fileno())
        return {"bytes": self.bytes, "sha256": self.hash.hexdigest(), "pieces": self.pieces.finish()}


def fingerprint_of(manifest: dict[str, Any]) -> str:
    """Return the identity of a store's tokens: equal for equal tokens in equal shards."""
    files = [[shard["files"][suffix]["sha256"] for suffix in ("tok", "idx")] for shard in manifest["shards"]]
    metadata = [
        manifest[key] for key in ("version", "dtype", "vocab_size", "bos_id", "eos_id", "tokenizer_fingerprint")
    ]
    metadata += [manifest["annotations"]] if "annotations" in manifest else []
    return hashlib.sha256(json.dumps([*metadata, files]).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a store's checked manifest; DataError names a field of wrong type or range."""
    path = folder / "manifest.json"
    if not os.path.lexists(path):
        raise DataError(f"{folder} is not a finished token store: it has no manifest.json.")
    try:
        manifest = read_json(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path} is not the manifest of a token store: it has no format={FORMAT!r}.")
    version = manifest.get("version")
    if type(version) is not int or version != VERSION:
        raise DataError(f"{path} has version={shortened(version)}, but this release reads version {VERSION} only.")
    try:
        _check_manifest(path, read_record(_Manifest, manifest, str(path)))
        check_seal(manifest, str(path))
    except ValueError as error:
        raise DataError(f"{error}. It was edited or damaged.") from None
    if manifest["fingerprint"] != fingerprint_of(manifest):
        raise DataError(f"{path} has a fingerprint other than that of its contents: it was edited or damaged.")
    return manifest


def _check_manifest(path: Path, manifest: _Manifest) -> None:
    """Raise ValueError if the fields of a manifest disagree."""
    dtype = f"uint{8 * item_bytes(manifest.vocab_size)['tok']}"
    if manifest.dtype != dtype:
        raise ValueError(f"{path} has dtype={shortened(manifest.dtype)}, but its vocab_size requires {dtype}")
    for shard in manifest.shards:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", shard.stem):
            raise ValueError(f"{path} lists the shard {shortened(shard.stem)}, which is not a plain file name")
        for file in (shard.files.tok, shard.files.idx, shard.files.names):
            digits = DIGITS * piece_count(file.bytes - HEADER.size)
            if file.pieces is not None and not re.fullmatch(f"[0-9a-f]{{{digits}}}", file.pieces, re.ASCII):
                raise ValueError(
                    f"{path} has pieces={shortened(file.pieces)}, which are no {digits} hexadecimal digits"
                )
    for total, part in (("n_tokens", "tokens"), ("n_documents", "documents"), ("text_bytes", "text_bytes")):
        if getattr(manifest, total) != sum(getattr(shard, part) for shard in manifest.shards):
            raise ValueError(f"{path} has {total}={getattr(manifest, total)}, which is not the sum over its shards")


def check_shard(folder: Path, manifest: dict[str, Any], shard: dict[str, Any]) -> None:
    """Check a shard's files for existence, size and header; DataError names the file."""
    for suffix, size in item_bytes(manifest["vocab_size"]).items():
        path = folder / "shards" / f"{shard['stem']}.{suffix}"
        expected: int = shard["files"][suffix]["bytes"]
        if suffix != "names":
            expected = HEADER.size + size * shard["tokens" if suffix == "tok" else "documents"]
        try:
            status = path.stat()
        except OSError:
            raise DataError(f"{path} is missing, but the store's manifest lists it.") from None
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} is not a regular file.")
        if not status.st_size == expected == shard["files"][suffix]["bytes"]:
            raise DataError(f"{path} has {status.st_size:,} bytes, but {expected:,} in the store's manifest.")
        metadata = (manifest["vocab_size"], shard["tokens"], shard["documents"], manifest["tokenizer_fingerprint"])
        _check_header(path, header(suffix, *metadata))


def check_ends(path: Path, ends: npt.NDArray[Any], tokens: int) -> None:
    """Check that document ends increase up to exactly the shard's number of tokens."""
    before = np.append(np.zeros(1, ends.dtype), ends[:-1])
    wrong = (ends <= before) | (ends > tokens)
    wrong[-1] |= bool(ends[-1] != tokens)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise DataError(
            f"{path} is damaged at byte {HEADER.size + 8 * at}: document {at} of the shard ends at token {ends[at]}, "
            f"and the one before at {before[at]}, in a shard of {tokens} tokens."
        )


def check_ids(path: Path, tokens: npt.NDArray[Any], vocab_size: int, bounds: tuple[int, int] | None = None) -> None:
    """Check that a shard's tokens within `bounds`, else all, are in the vocabulary."""
    start, end = bounds or (0, tokens.size)
    for first in range(start, end, SCANNED_TOKENS):
        part = tokens[first : min(first + SCANNED_TOKENS, end)]
        if part.max() >= vocab_size:
            at = first + int(np.argmax(part >= vocab_size))
            raise DataError(f"{path} is damaged: its token at offset {at} is {tokens[at]}, not below {vocab_size}.")


def check_eos(path: Path, tokens: npt.NDArray[Any], ends: npt.NDArray[Any], eos_id: int) -> None:
    """Check that every document of a shard ends with EOS."""
    last = tokens[ends - 1]
    if (last != eos_id).any():
        at = int(np.argmax(last != eos_id))
        raise DataError(
            f"{path} is damaged: document {at} of the shard ends at offset {ends[at] - 1} with token {last[at]}, "
            f"not with the end-of-document token {eos_id}."
        )


def check_hash(path: Path, sha256: str) -> None:
    """Compare the sha256 of a file's body with the manifest's."""
    with path.open("rb") as file:
        file.seek(HEADER.size)
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        raise DataError(
            f"{path} is damaged: its sha256 from byte {HEADER.size} on is {actual}, "
            f"but {shortened(sha256)} in the store's manifest."
        )


def _check_header(path: Path, expected: bytes) -> None:
    with path.open("rb") as file:
        actual = file.read(HEADER.size)
    for field, value, wanted in zip(HEADER_FIELDS, HEADER.unpack(actual), HEADER.unpack(expected), strict=True):
        if value != wanted:
            raise DataError(f"{path} has {field}={value!r} in its header, but the store's manifest implies {wanted!r}.")
