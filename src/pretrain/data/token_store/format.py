"""The files of a token store: how they are laid out, written so that a crash cannot hurt, and checked before use.

    manifest.json        what the store holds; written last and atomically, so its presence means complete
    shards/00000.tok     header, then little-endian tokens: two bytes each up to a vocabulary of 65,536, four beyond
    shards/00000.idx     header, then the end of every document as u64, counted in tokens within the shard
    shards/00000.names   header, then where every document came from: one JSON string a line
    annotations.bin      only of data for fine-tuning: see annotations.py

The manifest determines all 64 bytes of a header, so the hashes in it are of what follows the header: of each file as a
whole, and of its pieces (see piece_hashes.py). The manifest has a hash of itself; that of an earlier version need not.
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
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pretrain.data.token_store.piece_hashes import DIGITS, PieceHasher, piece_count
from pretrain.errors import CheckpointError, DataError
from pretrain.files import untrusted_files
from pretrain.files.records import check_seal
from pretrain.files.untrusted_files import open_regular

FORMAT, VERSION = "pretrain token store", 1


MAX_JSON_BYTES = 16_000_000


BUFFER_BYTES = 1 << 22


SCANNED_TOKENS = 1 << 22  # looked at together when a store is verified


HEADER = struct.Struct("<8sIIQQQ16sQ")


HEADER_FIELDS = ("magic", "version", "itemsize", "vocab_size", "n_tokens", "n_documents", "tokenizer", "reserved")


_OF_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ELOOP, errno.ENOTDIR)


MAGIC = {"tok": b"PRETRTOK", "idx": b"PRETRIDX", "names": b"PRETRNAM"}


@contextmanager
def storage_errors(cache: Path) -> Iterator[None]:
    """Raise CheckpointError, naming the folder, where the storage refuses to write to it; other errors go on."""
    try:
        yield
    except OSError as error:
        elsewhere = error.filename is not None and not Path(error.filename).is_relative_to(cache)
        if error.errno not in _OF_STORAGE or elsewhere:
            raise
        raise CheckpointError(
            f"prepared data cannot be written to {cache}: {os.strerror(error.errno)}. It must be writable and have "
            "room; or try another folder: paths.cache_dir=/another/disk/cache."
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash at any instant leaves the old file or the new one, never a mixture."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.unlink(missing_ok=True)
        with draft.open("xb") as file:  # never through a link
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_to_disk(path.parent)


def delete_drafts(folder: Path) -> None:
    """Delete what calls of `write_atomically` that were killed have left; no other may be under way there."""
    for draft in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", draft.name) and (draft.is_file() or draft.is_symlink()):
            draft.unlink(missing_ok=True)


def sync_to_disk(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def map_array(path: Path, dtype: npt.DTypeLike, count: int, offset: int = 0) -> npt.NDArray[Any]:
    """Return `count` numbers of a file, from byte `offset` on, as a read-only memory map; DataError if it is gone."""
    if count == 0:
        return np.empty(0, dtype)
    try:
        with open_regular(path) as file:
            return np.asarray(np.memmap(file, dtype, "r", offset, (count,)))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error for a file of prepared data that was there and cannot be read any more."""
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return DataError(
        f"{path} cannot be read: {reason}. Prepared data must stay where it is while a run reads it. Where it was "
        "deleted, go on from the last checkpoint with resume=auto, and it is made again."
    )


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; DataError when it is over 16 MB or no JSON, OSError when it cannot be read."""
    try:
        return untrusted_files.read_json(path, MAX_JSON_BYTES)
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({' '.join(str(error).split())[:200]}).") from None


def item_bytes(vocab_size: int) -> dict[str, int]:
    """Return how many bytes one item takes in each file of a shard."""
    return {"tok": 2 if vocab_size <= 65_536 else 4, "idx": 8, "names": 1}


def header(suffix: str, vocab_size: int, tokens: int, documents: int, tokenizer_fingerprint: str) -> bytes:
    """Return the 64 bytes that the file of a shard begins with."""
    tokenizer = hashlib.sha256(tokenizer_fingerprint.encode()).digest()[:16]  # 16 bytes, however it is written
    itemsize = item_bytes(vocab_size)[suffix]
    return HEADER.pack(MAGIC[suffix], VERSION, itemsize, vocab_size, tokens, documents, tokenizer, 0)


class ShardFile:
    """One file of a shard being written; it is open only while a buffer goes out, so a crash leaves nothing open."""

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
        """Put `head` in its place and return what the manifest says about the file."""
        self._flush()
        with self.path.open("r+b") as file:
            file.write(head)
            file.flush()
            os.fsync(file.fileno())
        return {"bytes": self.bytes, "sha256": self.hash.hexdigest(), "pieces": self.pieces.finish()}


def fingerprint_of(manifest: dict[str, Any]) -> str:
    """Return the identity of a store's tokens: equal for equal tokens in equal shards, wherever they came from."""
    files = [[shard["files"][suffix]["sha256"] for suffix in ("tok", "idx")] for shard in manifest["shards"]]
    metadata = [
        manifest[key] for key in ("version", "dtype", "vocab_size", "bos_id", "eos_id", "tokenizer_fingerprint")
    ]
    metadata += [manifest["annotations"]] if "annotations" in manifest else []
    return hashlib.sha256(json.dumps([*metadata, files]).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a store's manifest, every field that is used checked for type and range; DataError says which is wrong."""
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
        raise DataError(f"{path} has version={_shown(version)}, but this release reads version {VERSION} only.")
    _check_fields(path, manifest)
    try:
        check_seal(manifest, str(path))
    except ValueError as error:
        raise DataError(f"{error}. It was edited or damaged.") from None
    if manifest["fingerprint"] != fingerprint_of(manifest):
        raise DataError(f"{path} has a fingerprint that its own contents do not give: it was edited or damaged.")
    return manifest


def _check_fields(path: Path, manifest: dict[str, Any]) -> None:
    for key, least in (("vocab_size", 1), ("bos_id", -1), ("eos_id", 0)):
        _check_whole(path, manifest, key, least)
    for key in ("dtype", "tokenizer_fingerprint", "fingerprint"):
        _check_kind(path, manifest, key, str)
    _check_kind(path, manifest, "shards", list)
    dtype = f"uint{8 * item_bytes(manifest['vocab_size'])['tok']}"
    if manifest["dtype"] != dtype:
        raise DataError(f"{path} has dtype={_shown(manifest['dtype'])}, but its vocab_size asks for {dtype}.")
    for shard in manifest["shards"]:
        _check_record(path, shard)
    for total, part in (("n_tokens", "tokens"), ("n_documents", "documents"), ("text_bytes", "text_bytes")):
        _check_whole(path, manifest, total, 0)
        if manifest[total] != sum(shard[part] for shard in manifest["shards"]):
            raise DataError(f"{path} has {total}={manifest[total]}, which is not the sum over its shards.")


def check_shard(folder: Path, manifest: dict[str, Any], shard: dict[str, Any]) -> None:
    """Check that the files of one shard exist with the right size and header; DataError names the file."""
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
            raise DataError(f"{path} ends at byte {status.st_size:,}, but by its manifest it has {expected:,} bytes.")
        metadata = (manifest["vocab_size"], shard["tokens"], shard["documents"], manifest["tokenizer_fingerprint"])
        _check_header(path, header(suffix, *metadata))


def check_ends(path: Path, ends: npt.NDArray[Any], tokens: int) -> None:
    """Check that the ends of documents grow, from 1 at least to exactly the tokens of the shard."""
    before = np.append(np.zeros(1, ends.dtype), ends[:-1])
    wrong = (ends <= before) | (ends > tokens)
    wrong[-1] |= bool(ends[-1] != tokens)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise DataError(
            f"{path} is damaged at byte {HEADER.size + 8 * at}: document {at} of the shard ends at token {ends[at]}, "
            f"after one that ends at {before[at]}, in a shard of {tokens} tokens."
        )


def check_ids(path: Path, tokens: npt.NDArray[Any], vocab_size: int) -> None:
    """Check that every token of a shard is in the vocabulary."""
    for first in range(0, tokens.size, SCANNED_TOKENS):
        part = tokens[first : first + SCANNED_TOKENS]
        if part.max() >= vocab_size:
            raise bad_token(path, first + int(np.argmax(part >= vocab_size)), tokens, vocab_size)


def check_eos(path: Path, tokens: npt.NDArray[Any], ends: npt.NDArray[Any], eos_id: int) -> None:
    """Check that every document of a shard ends with EOS."""
    last = tokens[ends - 1]
    if (last != eos_id).any():
        at = int(np.argmax(last != eos_id))
        raise DataError(
            f"{path} is damaged: document {at} of the shard ends at offset {ends[at] - 1} with token {last[at]}, "
            f"not with the end-of-document token {eos_id}."
        )


def bad_token(path: Path, offset: int, tokens: npt.NDArray[Any], vocab_size: int) -> DataError:
    """Return the error for the token at `offset` of a shard, which is not in the vocabulary."""
    return DataError(f"{path} is damaged: its token at offset {offset} is {tokens[offset]}, not below {vocab_size}.")


def check_piece(path: Path, tokens: npt.NDArray[Any], first: int, length: int, vocab_size: int) -> None:
    """Check the ids of a few tokens of a shard."""
    bad = np.flatnonzero(tokens[first : first + length] >= vocab_size)
    if bad.size:
        raise bad_token(path, first + int(bad[0]), tokens, vocab_size)


def check_hash(path: Path, sha256: str) -> None:
    """Check what follows the header of a shard's file against the manifest."""
    with path.open("rb") as file:
        file.seek(HEADER.size)
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DataError(
            f"{path} is not as it was written: its sha256 from byte {HEADER.size} on is {found}, "
            f"but its manifest says {_shown(sha256)}."
        )


def _check_header(path: Path, expected: bytes) -> None:
    with path.open("rb") as file:
        found = file.read(HEADER.size)
    fields = zip(HEADER_FIELDS, HEADER.unpack(found), HEADER.unpack(expected), strict=True)
    for field, value, right in fields:
        if value != right:
            raise DataError(f"{path} has {field}={value!r} in its header, but by its manifest it is {right!r}.")


def _check_record(path: Path, shard: object) -> None:
    """Check one entry of the manifest's list of shards."""
    if not isinstance(shard, dict):
        raise DataError(f"{path} lists the shard {_shown(shard)}, which is not an object.")
    stem = shard.get("stem")
    if not isinstance(stem, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", stem):
        raise DataError(f"{path} lists the shard {_shown(stem)}, which is not a plain file name.")
    for key, least in (("tokens", 1), ("documents", 1), ("text_bytes", 0)):
        _check_whole(path, shard, key, least)
    _check_kind(path, shard, "files", dict)
    for suffix in MAGIC:
        _check_kind(path, shard["files"], suffix, dict)
        _check_whole(path, shard["files"][suffix], "bytes", HEADER.size)
        _check_kind(path, shard["files"][suffix], "sha256", str)
        _check_pieces(path, shard["files"][suffix])


def _check_pieces(path: Path, file: dict[str, Any]) -> None:
    """Check the hashes of a file's pieces, which an earlier version did not write."""
    if "pieces" in file:
        _check_kind(path, file, "pieces", str)
        digits = DIGITS * piece_count(file["bytes"] - HEADER.size)
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", file["pieces"], re.ASCII):
            raise DataError(f"{path} has pieces={_shown(file['pieces'])}, which are no {digits} hexadecimal digits.")


def _check_kind(path: Path, record: dict[str, Any], key: str, kind: type) -> None:
    if not isinstance(record.get(key), kind):
        raise DataError(f"{path} has {key}={_shown(record.get(key))}, which is no {kind.__name__}.")


def _check_whole(path: Path, record: dict[str, Any], key: str, least: int) -> None:
    value = record.get(key)
    if type(value) is not int or not least <= value < 2**48:  # type(): True is no number here
        raise DataError(f"{path} has {key}={_shown(value)}, which is no whole number from {least} on.")


def _shown(value: object) -> str:
    """Return a value of an untrusted file for a message: escaped and short."""
    return ascii(value)[:80]
