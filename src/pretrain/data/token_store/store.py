"""The token store: shards of tokens, written in one pass and read through memory maps.

`format.py` describes its files. A store is untrusted: every value is checked before use.
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
    Vocabulary,
    check_ends,
    check_eos,
    check_hash,
    check_ids,
    check_shard,
    fingerprint_of,
    header,
    item_bytes,
    map_array,
    read_manifest,
)
from pretrain.data.token_store.piece_hashes import CheckedPieces, hashes_of
from pretrain.errors import DataError, printable
from pretrain.files.atomic_files import sync_to_disk, write_atomically
from pretrain.files.records import sealed

log = logging.getLogger(__name__)

MAX_OPEN_MAPS = 256  # each uses a file descriptor, and a process often may have 1,024
Ints = npt.NDArray[np.int64]


class StoreWriter:
    """Writes documents to a new store; memory: the longest document and a few MB.

    The folder becomes a store only with `finish`. Equal documents and settings give equal bytes.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, shard_tokens: int) -> None:
        """Start a store in `folder`, which must not have shards yet."""
        vocab_size, bos_id, eos_id = vocabulary.vocab_size, vocabulary.bos_id, vocabulary.eos_id
        if not (1 <= vocab_size <= 2**32 and 0 <= eos_id < vocab_size and -1 <= bos_id < vocab_size):
            raise DataError(
                f"A token store cannot have vocab_size={vocab_size} with bos_id={bos_id} and eos_id={eos_id}: "
                "a vocabulary has 1 to 4,294,967,296 ids and the special ones are among them."
            )
        self.folder, self.vocabulary, self.shard_tokens = folder, vocabulary, shard_tokens
        self._dtype = np.dtype(f"<u{item_bytes(vocab_size)['tok']}")
        self._shards: list[dict[str, Any]] = []
        self._files: dict[str, ShardFile] = {}
        self._tokens = self._documents = self._text_bytes = 0  # of the shard being written
        self._finished = False
        try:
            (folder / "shards").mkdir(parents=True)
        except FileExistsError:
            raise DataError(f"{folder} already holds shards: write to a new folder, or remove this one.") from None

    def add(self, tokens: npt.NDArray[Any], text_bytes: int, name: str = "") -> None:
        """Append one document: ids with BOS and EOS, the bytes of its text, its origin.

        A shard is closed before it would exceed `shard_tokens`; a longer document gets its own shard.
        Raises DataError if an id is not in the vocabulary or the last one is not EOS.
        """
        self._check(tokens, name)
        if self._tokens and self._tokens + tokens.size > self.shard_tokens:
            self._finish_shard()
        if not self._files:
            self._start_shard()
        self._tokens, self._documents = self._tokens + tokens.size, self._documents + 1
        self._text_bytes += text_bytes
        self._files["tok"].write(tokens.astype(self._dtype).tobytes())
        self._files["idx"].write(self._tokens.to_bytes(8, "little"))
        self._files["names"].write(json.dumps(name).encode() + b"\n")

    def finish(self, provenance: dict[str, object], annotations: Annotations | None = None) -> "Store":
        """Write the manifest, with `provenance` unchanged in it, and return the store."""
        if self._files:
            self._finish_shard()
        self._finished = True
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": f"uint{8 * self._dtype.itemsize}",
            "vocab_size": self.vocabulary.vocab_size,
            "bos_id": self.vocabulary.bos_id,
            "eos_id": self.vocabulary.eos_id,
            "tokenizer_fingerprint": self.vocabulary.tokenizer_fingerprint,
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
        eos_id, vocab_size = self.vocabulary.eos_id, self.vocabulary.vocab_size
        if tokens.size == 0 or tokens[-1] != eos_id:
            raise DataError(f"Document {name!a} does not end with the end-of-document token {eos_id}.")
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            at = int(np.argmax((tokens < 0) | (tokens >= vocab_size)))
            raise DataError(f"Document {name!a} has token {tokens[at]} at offset {at}, outside 0 to {vocab_size - 1}.")

    def _start_shard(self) -> None:
        if self._finished:
            raise DataError(f"{self.folder} is finished: no document can be added to it.")
        stem = self.folder / "shards" / f"{len(self._shards):05d}"
        self._files = {suffix: ShardFile(stem.with_suffix(f".{suffix}")) for suffix in MAGIC}

    def _finish_shard(self) -> None:
        vocabulary = self.vocabulary
        metadata = (vocabulary.vocab_size, self._tokens, self._documents, vocabulary.tokenizer_fingerprint)
        files = {suffix: file.finish(header(suffix, *metadata)) for suffix, file in self._files.items()}
        counts = {"tokens": self._tokens, "documents": self._documents, "text_bytes": self._text_bytes}
        self._shards.append({"stem": f"{len(self._shards):05d}", **counts, "files": files})
        self._files = {}
        self._tokens = self._documents = self._text_bytes = 0


class Store:
    """A finished token store, opened read-only through memory maps in milliseconds.

    Pieces are compared with the hashes in the manifest before their first use. A store of an earlier version has no
    such hashes: it is verified when it is opened, and they are added if its folder is writable.

    Tokens are counted over all shards in order: the global offset of a token is its index in that sequence.
    """

    def __init__(self, folder: Path) -> None:
        """Open a store and check everything but file bodies; DataError names the file."""
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
        self._token_starts, self._limits = np.append(0, self._token_ends), np.append(self._token_ends, 0)
        self._document_ends = np.cumsum([shard["documents"] for shard in self._shards], dtype=np.int64)
        self._maps: dict[tuple[int, str], npt.NDArray[Any]] = {}
        self._bounds: Ints | None = None
        self._lines: tuple[int, Ints] | None = None  # shard of the last name that was read, ends of its names
        self._pieces: dict[str, CheckedPieces] = {}
        if any(shard["files"][suffix].get("pieces") is None for shard in self._shards for suffix in MAGIC):
            _add_pieces(self)
        self._pieces = {
            suffix: CheckedPieces(
                [shard["files"][suffix]["pieces"] for shard in self._shards],
                item_bytes(self.vocab_size)[suffix],
                partial(self.body, suffix=suffix),
                partial(self.path, suffix=suffix),
            )
            for suffix in MAGIC
        }

    @property
    def provenance(self) -> dict[str, Any]:
        """What is known of the text: its kind of source, the documents skipped, the corpus that it is of."""
        found = self.manifest.get("provenance")
        return found if isinstance(found, dict) else {}

    def document_bounds(self) -> Ints:
        """Return the global offsets between documents, int64 (n_documents + 1,).

        Document i is the tokens from bounds[i] up to bounds[i + 1]. Cached (8 bytes a document) and read-only.
        Raises DataError for a damaged index.
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
        """Return the number of tokens of each document, BOS and EOS included, int64 (n_documents,)."""
        return np.diff(self.document_bounds())

    def document_starts(self) -> Ints:
        """Return the global offset of each document's first token, int64 (n_documents,)."""
        return self.document_bounds()[:-1]

    def read(self, starts: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> Ints:
        """Return the tokens of ranges, int64, concatenated; arguments and errors as of `read_into`."""
        self._shards_of(starts, lengths)  # before memory is allocated for a hostile length
        tokens = np.empty(int(lengths.sum()), np.int64)
        self.read_into(tokens, np.cumsum(lengths) - lengths, starts, lengths)
        return tokens

    def read_into(self, out: Ints, targets: Ints, starts: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> None:
        """Copy ranges of tokens, each within one document, to the indices `targets` of `out`.

        `targets`, `starts` (global offsets) and `lengths` are (ranges,). Raises DataError if a range leaves its shard,
        a token is not in the vocabulary, or a piece that holds the range is damaged.
        """
        shards = self._shards_of(starts, lengths)
        columns = (shards, starts - self._token_starts[shards], lengths, targets)
        ranges = list(zip(*(column.tolist() for column in columns), strict=True))
        maps = {shard: self.body(shard, "tok") for shard in {shard for shard, *_ in ranges}}
        for shard, first, length, target in ranges:
            out[target : target + length] = maps[shard][first : first + length]
        if out.size and out.max() >= self.vocab_size:  # one test for all; a range is tested only if it fails
            for shard, first, length, _ in ranges:
                check_ids(self.path(shard, "tok"), maps[shard], self.vocab_size, (first, first + length))
        if self._pieces:
            self._pieces["tok"].check(*columns[:3])

    def _shards_of(self, starts: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> Ints:
        """Return the shard of each range; DataError if a range does not lie in one."""
        shards = np.searchsorted(self._token_ends, starts, side="right")
        if (beyond := (starts < 0) | (lengths < 0) | (lengths > self._limits[shards] - starts)).any():
            at = int(np.argmax(beyond))
            raise DataError(f"{self.folder}: no shard holds the {lengths[at]} tokens from offset {starts[at]} on.")
        return shards

    def document(self, index: int) -> Ints:
        """Return all tokens of one document, BOS and EOS included."""
        self._locate(index)
        bounds = self.document_bounds()[index : index + 2]
        return self.read(bounds[:1], np.diff(bounds))

    def document_name(self, index: int) -> str:
        """Return the origin of a document, which may hold any character: escape it for display."""
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
        """Raise DataError for a tokenizer other than the one that wrote the store."""
        if (fingerprint, vocab_size) != (self.tokenizer_fingerprint, self.vocab_size):
            raise DataError(
                f"{self.folder} was written with tokenizer {self.tokenizer_fingerprint!a} of {self.vocab_size} ids, "
                f"but this run has tokenizer {fingerprint!a} of {vocab_size} ids: use that one, or prepare again."
            )

    def verify(self) -> None:
        """Read and check the whole store, about 1 GB/s; DataError names the damaged file.

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
        """Return the path of a shard's file of tokens (tok), document ends (idx) or names."""
        return self.folder / "shards" / f"{self._shards[shard]['stem']}.{suffix}"

    def body(self, shard: int, suffix: str) -> npt.NDArray[Any]:
        """Return the body of a shard's file as a memory map, without comparing hashes."""
        if (mapped := self._maps.get((shard, suffix))) is None:
            if len(self._maps) >= MAX_OPEN_MAPS:
                del self._maps[next(iter(self._maps))]
            itemsize, size = item_bytes(self.vocab_size)[suffix], self._shards[shard]["files"][suffix]["bytes"]
            items = (size - HEADER.size) // itemsize
            mapped = map_array(self.path(shard, suffix), f"<u{itemsize}", items, HEADER.size)
            self._maps[shard, suffix] = mapped
        return mapped

    def _ends(self, shard: int) -> Ints:
        """Return the checked ends of a shard's documents, counted within the shard."""
        ends = self.body(shard, "idx")
        check_ends(self.path(shard, "idx"), ends, self._shards[shard]["tokens"])
        if self._pieces:
            self._pieces["idx"].check_file(shard)
        return ends.astype(np.int64)

    def _line_ends(self, shard: int) -> Ints:
        """Return the ends of the names of a shard's documents within their file."""
        ends, documents = np.flatnonzero(self.body(shard, "names") == ord("\n")), self._shards[shard]["documents"]
        if len(ends) != documents:
            raise DataError(f"{self.path(shard, 'names')} is damaged: {len(ends)} names for {documents} documents.")
        if self._pieces:
            self._pieces["names"].check_file(shard)
        return ends

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the shard of a document and its index within the shard."""
        if not 0 <= index < self.n_documents:
            raise DataError(f"{self.folder} has no document {index}: it holds {self.n_documents}, counted from 0.")
        shard = int(np.searchsorted(self._document_ends, index, side="right"))
        return shard, index - (int(self._document_ends[shard - 1]) if shard else 0)


def _add_pieces(store: Store) -> None:
    """Verify a store of an earlier version and add hashes of pieces to its manifest.

    In a read-only folder they stay in memory, so each start reads the whole store again. Raises DataError as
    `Store.verify`.
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
            f"{store.folder} is of an earlier version, without hashes of its pieces: all {read / 1e6:.1f} MB were "
            f"verified, at {read / 1e6 / max(seconds, 1e-9):.0f} MB/s"
        )
        log.warning("%s", printable(line, one_line=True))
    try:
        write_atomically(store.folder / "manifest.json", json.dumps(sealed(store.manifest), indent=1).encode())
    except OSError as error:
        line = f"hashes of pieces cannot be added to {store.folder} ({error}), so it is verified at each start"
        log.warning("%s", printable(line, one_line=True))
