"""The token store: a folder of shards of tokens, written in one pass and read through memory maps.

`format.py` describes its files. A store is an untrusted file: every value is checked before use.
"""

import json
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pretrain.data.token_store.annotations import Annotations
from pretrain.data.token_store.format import (
    FORMAT,
    HEADER,
    MAGIC,
    MAX_JSON_BYTES,
    VERSION,
    ShardFile,
    check_ends,
    check_eos,
    check_hash,
    check_ids,
    check_piece,
    check_shard,
    fingerprint_of,
    header,
    item_bytes,
    map_array,
    read_manifest,
    sync_to_disk,
    write_atomically,
)
from pretrain.data.token_store.piece_hashes import CheckedPieces, hashes_of
from pretrain.errors import DataError, printable
from pretrain.files.records import sealed

log = logging.getLogger(__name__)


MAX_OPEN_MAPS = 256  # each holds a file descriptor, and 1,024 is a common limit of a process


Ints = npt.NDArray[np.int64]


class StoreWriter:
    """Writes documents to a new store; memory stays at a few MB and the longest document.

    The folder becomes a store only with `finish`. Equal documents and settings give equal bytes.
    """

    def __init__(
        self, folder: Path, *, vocab_size: int, tokenizer_fingerprint: str, bos_id: int, eos_id: int, shard_tokens: int
    ) -> None:
        """Start a store in `folder`, which must hold none; `bos_id` is -1 where documents have no first token."""
        if not (1 <= vocab_size <= 2**32 and 0 <= eos_id < vocab_size and -1 <= bos_id < vocab_size):
            raise DataError(
                f"A token store cannot have vocab_size={vocab_size} with bos_id={bos_id} and eos_id={eos_id}: "
                "a vocabulary has 1 to 4,294,967,296 ids and the special ones are among them."
            )
        self.folder, self.shard_tokens = folder, shard_tokens
        self.vocab_size, self.tokenizer_fingerprint = vocab_size, tokenizer_fingerprint
        self.bos_id, self.eos_id = bos_id, eos_id
        self._dtype = np.dtype(f"<u{item_bytes(vocab_size)['tok']}")
        self._shards: list[dict[str, Any]] = []
        self._parts: dict[str, ShardFile] = {}
        self._tokens = self._documents = self._text_bytes = 0  # of the shard being written
        self._finished = False
        try:
            (folder / "shards").mkdir(parents=True)
        except FileExistsError:
            raise DataError(f"{folder} already holds shards: write to a new folder, or remove this one.") from None

    def add(self, tokens: npt.NDArray[Any], text_bytes: int, name: str = "") -> None:
        """Append one document: ids with BOS and EOS in place, the bytes of its text, and where it came from.

        A shard is closed before it would exceed `shard_tokens`; a longer document gets a shard of its own.
        DataError when an id is not in the vocabulary or the last one is not EOS.
        """
        self._check(tokens, name)
        if self._tokens and self._tokens + tokens.size > self.shard_tokens:
            self._finish_shard()
        if not self._parts:
            self._start_shard()
        self._tokens, self._documents = self._tokens + tokens.size, self._documents + 1
        self._text_bytes += text_bytes
        self._parts["tok"].write(tokens.astype(self._dtype).tobytes())
        self._parts["idx"].write(self._tokens.to_bytes(8, "little"))
        self._parts["names"].write(json.dumps(name).encode() + b"\n")

    def finish(self, provenance: dict[str, object], annotations: Annotations | None = None) -> "Store":
        """Write the manifest, with `provenance` in it as it is, and return the store."""
        if self._parts:
            self._finish_shard()
        self._finished = True
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": f"uint{8 * self._dtype.itemsize}",
            "vocab_size": self.vocab_size,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "n_tokens": sum(shard["tokens"] for shard in self._shards),
            "n_documents": sum(shard["documents"] for shard in self._shards),
            "text_bytes": sum(shard["text_bytes"] for shard in self._shards),
            "shards": self._shards,
            "provenance": provenance,
        }
        manifest |= {} if annotations is None else {"annotations": annotations.save(self.folder)}
        data = json.dumps(sealed(manifest | {"fingerprint": fingerprint_of(manifest)}), indent=1).encode()
        if len(data) > MAX_JSON_BYTES:
            raise DataError(
                f"The manifest of {self.folder} would take {len(data):,} bytes for {len(self._shards):,} shards and "
                f"its provenance, above {MAX_JSON_BYTES:,}. Try a larger data.shard_tokens, such as 134217728."
            )
        sync_to_disk(self.folder / "shards")
        write_atomically(self.folder / "manifest.json", data)
        return Store(self.folder)

    def _check(self, tokens: npt.NDArray[Any], name: str) -> None:
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise DataError(f"Document {name!a} is {tokens.dtype} of shape {tokens.shape}, not a flat array of ids.")
        if tokens.size == 0 or tokens[-1] != self.eos_id:
            raise DataError(f"Document {name!a} does not end with the end-of-document token {self.eos_id}.")
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            at = int(np.argmax((tokens < 0) | (tokens >= self.vocab_size)))
            raise DataError(
                f"Document {name!a} holds token {tokens[at]} at offset {at}, outside 0 to {self.vocab_size - 1}."
            )

    def _start_shard(self) -> None:
        if self._finished:
            raise DataError(f"{self.folder} is finished: no document can be added to it.")
        stem = self.folder / "shards" / f"{len(self._shards):05d}"
        self._parts = {suffix: ShardFile(stem.with_suffix(f".{suffix}")) for suffix in MAGIC}

    def _finish_shard(self) -> None:
        metadata = (self.vocab_size, self._tokens, self._documents, self.tokenizer_fingerprint)
        files = {suffix: part.finish(header(suffix, *metadata)) for suffix, part in self._parts.items()}
        counts = {"tokens": self._tokens, "documents": self._documents, "text_bytes": self._text_bytes}
        self._shards.append({"stem": f"{len(self._shards):05d}", **counts, "files": files})
        self._parts = {}
        self._tokens = self._documents = self._text_bytes = 0


class Store:
    """A finished token store, opened read-only through memory maps; opening costs milliseconds.

    What is read is compared with the hashes in its manifest first, piece by piece. A store of an earlier version has
    none of pieces: it is read whole when it is opened, and where its folder can be written to, they are added.

    Tokens are counted over all shards in order: a document's global offset is its place in that one long stream.
    """

    def __init__(self, folder: Path) -> None:
        """Open a store and check all but the bodies of its files; DataError names the file and what is wrong."""
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.vocab_size: int = self.manifest["vocab_size"]
        self.bos_id: int = self.manifest["bos_id"]
        self.eos_id: int = self.manifest["eos_id"]
        self.n_tokens: int = self.manifest["n_tokens"]
        self.n_documents: int = self.manifest["n_documents"]
        self.text_bytes: int = self.manifest["text_bytes"]
        self.tokenizer_fingerprint: str = self.manifest["tokenizer_fingerprint"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self.annotations = Annotations.load(folder, self.manifest)
        self._shards: list[dict[str, Any]] = self.manifest["shards"]
        for shard in self._shards:
            check_shard(folder, self.manifest, shard)
        self._token_ends = np.cumsum([shard["tokens"] for shard in self._shards], dtype=np.int64)
        self._token_starts, self._reaches = np.append(0, self._token_ends), np.append(self._token_ends, 0)
        self._document_ends = np.cumsum([shard["documents"] for shard in self._shards], dtype=np.int64)
        self._maps: dict[tuple[int, str], npt.NDArray[Any]] = {}
        self._bounds: Ints | None = None
        self._lines: tuple[int, Ints] | None = None  # of the shard whose names were last asked for
        self._pieces: dict[str, CheckedPieces] = {}
        if not self._has_pieces():
            _add_pieces(self)
        if self._has_pieces():
            self._pieces = self._checked_pieces()

    def _has_pieces(self) -> bool:
        return all("pieces" in shard["files"][suffix] for shard in self._shards for suffix in MAGIC)

    def _checked_pieces(self) -> dict[str, CheckedPieces]:
        """Return which pieces of the files of each kind are known to be as they were written: none yet."""
        return {
            suffix: CheckedPieces(
                [shard["files"][suffix]["pieces"] for shard in self._shards],
                item_bytes(self.vocab_size)[suffix],
                partial(self.body, suffix=suffix),
                partial(self.path, suffix=suffix),
            )
            for suffix in MAGIC
        }

    def document_bounds(self) -> Ints:
        """Return int64 [n_documents + 1]: document i is the tokens from bounds[i] up to bounds[i + 1], globally.

        Kept once read (8 bytes a document); read-only. DataError when an index is damaged.
        """
        if self._bounds is None:
            bounds, documents, tokens = np.zeros(self.n_documents + 1, np.int64), 0, 0
            for shard, record in enumerate(self._shards):
                bounds[documents + 1 : documents + record["documents"] + 1] = self._ends(shard) + tokens
                documents, tokens = documents + record["documents"], tokens + record["tokens"]
            bounds.setflags(write=False)
            self._bounds = bounds
        return self._bounds

    def document_lengths(self) -> Ints:
        """Return int64 [n_documents]: the tokens of each document, BOS and EOS included."""
        return np.diff(self.document_bounds())

    def document_starts(self) -> Ints:
        """Return int64 [n_documents]: the global offset of each document's first token."""
        return self.document_bounds()[:-1]

    def read(self, starts: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> Ints:
        """Return the tokens (int64) of pieces, one after another; else as `read_into`."""
        self._shards_of(starts, lengths)  # before room is made for what may not be there
        tokens = np.empty(int(lengths.sum()), np.int64)
        self.read_into(tokens, np.cumsum(lengths) - lengths, starts, lengths)
        return tokens

    def read_into(self, out: Ints, places: Ints, starts: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> None:
        """Put the tokens of each piece, which lies in one document, at its place in `out`; `starts` are global offsets.

        DataError when a piece reaches out of its shard, a token is not in the vocabulary, or what it is near to on the
        disk is not as it was written.
        """
        shards = self._shards_of(starts, lengths)
        columns = (shards, starts - self._token_starts[shards], lengths, places)
        pieces = list(zip(*(column.tolist() for column in columns), strict=True))
        maps = {shard: self.body(shard, "tok") for shard in {shard for shard, *_ in pieces}}
        for shard, first, length, place in pieces:
            out[place : place + length] = maps[shard][first : first + length]
        if out.size and out.max() >= self.vocab_size:  # one look at all: the pieces are looked at where it finds any
            for shard, first, length, _ in pieces:
                check_piece(self.path(shard, "tok"), maps[shard], first, length, self.vocab_size)
        if self._pieces:
            self._pieces["tok"].check(*columns[:3])

    def _shards_of(self, starts: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> Ints:
        """Return the shard that holds each piece, once every piece is known to lie in one."""
        shards = np.searchsorted(self._token_ends, starts, side="right")
        if (beyond := (starts < 0) | (lengths < 0) | (lengths > self._reaches[shards] - starts)).any():
            at = int(np.argmax(beyond))
            raise DataError(f"{self.folder}: no shard holds the {lengths[at]} tokens from offset {starts[at]} on.")
        return shards

    def document(self, index: int) -> Ints:
        """Return all tokens of one document, BOS and EOS included."""
        self._locate(index)
        bounds = self.document_bounds()[index : index + 2]
        return self.read(bounds[:1], np.diff(bounds))

    def document_name(self, index: int) -> str:
        """Return where a document came from, as its source told; it may hold any character, so escape it to show it."""
        shard, local = self._locate(index)
        if self._lines is None or self._lines[0] != shard:
            self._lines = shard, self._line_ends(shard)
        first, end = (self._lines[1][local - 1] + 1 if local else 0), self._lines[1][local]
        try:
            name = json.loads(self.body(shard, "names")[first:end].tobytes())
        except (ValueError, RecursionError):
            name = None
        if not isinstance(name, str):
            raise DataError(f"{self.path(shard, 'names')} is damaged: the name of document {local} is no JSON string.")
        return name

    def check_tokenizer(self, fingerprint: str, vocab_size: int) -> None:
        """Refuse a tokenizer other than the one that wrote the store."""
        if (fingerprint, vocab_size) != (self.tokenizer_fingerprint, self.vocab_size):
            raise DataError(
                f"{self.folder} was written with tokenizer {self.tokenizer_fingerprint!a} of {self.vocab_size} ids, "
                f"but this run has tokenizer {fingerprint!a} of {vocab_size} ids: use that one, or prepare again."
            )

    def verify(self) -> None:
        """Read the whole store, about 1 GB/s; DataError names the first file, and offset, that is not as written.

        Checks every id, every end of a document, the number of names, and the sha256 of every file.
        """
        for shard, record in enumerate(self._shards):
            path, tokens, ends = self.path(shard, "tok"), self.body(shard, "tok"), self._ends(shard)
            check_ids(path, tokens, self.vocab_size)
            check_eos(path, tokens, ends, self.eos_id)
            self._line_ends(shard)
            for suffix in MAGIC:
                check_hash(self.path(shard, suffix), record["files"][suffix]["sha256"])

    def path(self, shard: int, suffix: str) -> Path:
        """Return the name of a file of a shard: of its tokens (tok), ends (idx) or names."""
        return self.folder / "shards" / f"{self._shards[shard]['stem']}.{suffix}"

    def body(self, shard: int, suffix: str) -> npt.NDArray[Any]:
        """Return what follows the header of a file of a shard, as a memory map; not compared with its hashes."""
        if (found := self._maps.get((shard, suffix))) is None:
            if len(self._maps) >= MAX_OPEN_MAPS:
                del self._maps[next(iter(self._maps))]
            itemsize, size = item_bytes(self.vocab_size)[suffix], self._shards[shard]["files"][suffix]["bytes"]
            items = (size - HEADER.size) // itemsize
            found = map_array(self.path(shard, suffix), f"<u{itemsize}", items, HEADER.size)
            self._maps[shard, suffix] = found
        return found

    def _ends(self, shard: int) -> Ints:
        """Return where the documents of a shard end, counted within it, once that is known to make sense."""
        ends = self.body(shard, "idx")
        check_ends(self.path(shard, "idx"), ends, self._shards[shard]["tokens"])
        if self._pieces:
            self._pieces["idx"].check_file(shard)
        return ends.astype(np.int64)

    def _line_ends(self, shard: int) -> Ints:
        """Return where the names of a shard's documents end within their file."""
        ends, documents = np.flatnonzero(self.body(shard, "names") == ord("\n")), self._shards[shard]["documents"]
        if len(ends) != documents:
            raise DataError(f"{self.path(shard, 'names')} is damaged: {len(ends)} names for {documents} documents.")
        if self._pieces:
            self._pieces["names"].check_file(shard)
        return ends

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the shard of a document and its place there."""
        if not 0 <= index < self.n_documents:
            raise DataError(f"{self.folder} has no document {index}: it holds {self.n_documents}, counted from 0.")
        shard = int(np.searchsorted(self._document_ends, index, side="right"))
        return shard, index - (int(self._document_ends[shard - 1]) if shard else 0)


def _add_pieces(store: Store) -> None:
    """Verify a store of an earlier version and add hashes of pieces to its manifest.

    In a read-only folder they stay in memory, so each start reads the whole store again. Raises DataError as
    `Store.verify` does.
    """
    start = time.monotonic()
    store.verify()
    read = 0
    for number, shard in enumerate(store.manifest["shards"]):
        for suffix in MAGIC:
            shard["files"][suffix]["pieces"] = hashes_of(store.body(number, suffix))
            read += shard["files"][suffix]["bytes"]
    seconds = time.monotonic() - start
    if read:
        line = (
            f"{store.folder} is of an earlier version, without hashes of its pieces: its {read / 1e6:.1f} MB were read "
            f"whole, at {read / 1e6 / max(seconds, 1e-9):.0f} MB/s"
        )
        log.warning("%s", printable(line, one_line=True))
    try:
        write_atomically(store.folder / "manifest.json", json.dumps(sealed(store.manifest), indent=1).encode())
    except OSError as error:
        line = f"{store.folder} cannot be given them ({error}), so it is read whole whenever it is opened"
        log.warning("%s", printable(line, one_line=True))
