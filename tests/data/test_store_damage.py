"""A store that was damaged or made with ill intent is refused, by the file and offset that is wrong."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data.store import Store, StoreWriter
from pretrain.data.store_files import HEADER, fingerprint_of
from pretrain.errors import DataError

BOS, EOS = 1, 2


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Shards of 2, 1, 2 and 2 documents with 9, 102, 38 and 35 tokens."""
    out = StoreWriter(
        tmp_path / "store", vocab_size=300, tokenizer_fingerprint="ab", bos_id=BOS, eos_id=EOS, shard_tokens=40
    )
    for size in (5, 0, 100, 17, 17, 1, 30):
        out.add(np.array([BOS, *[7] * size, EOS]), text_bytes=size, name=f"{size}.txt")
    return out.finish({})


def edit(folder: Path, change: dict[str, Any], consistent: bool = False) -> None:
    """Change fields of a manifest, as a hostile or careless hand would."""
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **change}
    if consistent:
        manifest["fingerprint"] = fingerprint_of(manifest)
    path.write_text(json.dumps(manifest))


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.fault("F09")
def test_a_folder_without_manifest_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "half" / "shards").mkdir(parents=True)
    for name in ("half", "absent"):
        with pytest.raises(DataError, match=f"{name} is not a finished token store: it has no manifest"):
            Store(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b"\xff{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b" " * 16_000_001, "is larger than the 16,000,000 bytes"),
        (b"[]", "is not the manifest of a token store"),
        (b'{"format": "other"}', "is not the manifest of a token store"),
    ],
)
def test_a_manifest_that_is_none_is_refused(store: Store, content: bytes, message: str) -> None:
    (store.folder / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Store(store.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version=2, but this release reads version 1 only"),
        ({"version": True}, "version=True, but this release"),
        ({"vocab_size": 0}, "vocab_size=0, which is no whole number from 1 on"),
        ({"vocab_size": 10**4000}, "vocab_size=1000"),
        ({"eos_id": "\x1b[31m"}, r"eos_id='\\x1b\[31m', which is no whole number"),
        ({"dtype": "uint32"}, "dtype='uint32', but its vocab_size asks for uint16"),
        ({"dtype": None}, "dtype=None, which is no str"),
        ({"shards": {}}, "shards={}, which is no list"),
        ({"shards": [1]}, "lists the shard 1, which is not an object"),
        ({"n_tokens": 185}, "n_tokens=185, which is not the sum over its shards"),
        ({"n_documents": 1.5}, "n_documents=1.5, which is no whole number"),
        ({"fingerprint": "0" * 64}, "has a fingerprint that its own contents do not give"),
        ({"bos_id": 5}, "has a fingerprint that its own contents do not give"),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused(store: Store, change: dict[str, Any], message: str) -> None:
    edit(store.folder, change)
    with pytest.raises(DataError, match=message):
        Store(store.folder)


@pytest.mark.parametrize("stem", ["../x", "/etc/passwd", "a/b", "..", "", "a\x00b", "a\n", 3, None])
def test_a_name_that_could_leave_the_folder_is_refused(store: Store, stem: object) -> None:
    first, *others = store.manifest["shards"]
    edit(store.folder, {"shards": [{**first, "stem": stem}, *others]}, consistent=True)
    with pytest.raises(DataError, match="which is not a plain file name"):
        Store(store.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens=0, which is no whole number from 1 on"),
        ({"files": []}, "files=\\[\\], which is no dict"),
        ({"files": {}}, "tok=None, which is no dict"),
        ({"files": {"tok": {"bytes": 9}}}, "bytes=9, which is no whole number from 64 on"),
        ({"files": {"tok": {"bytes": 64, "sha256": 5}}}, "sha256=5, which is no str"),
    ],
)
def test_a_shard_with_a_wrong_field_is_refused(store: Store, change: dict[str, Any], message: str) -> None:
    first, *others = store.manifest["shards"]
    edit(store.folder, {"shards": [{**first, **change}, *others]})
    with pytest.raises(DataError, match=message):
        Store(store.folder)


@pytest.mark.parametrize("suffix", ["tok", "idx", "names"])
@pytest.mark.fault("F09")
def test_a_shard_of_the_wrong_size_is_refused_at_once(store: Store, suffix: str) -> None:
    path = store.folder / f"shards/00002.{suffix}"
    size = path.stat().st_size
    for kept in (size - 1, 64, 0):
        os.truncate(path, kept)
        with pytest.raises(DataError, match=rf"00002\.{suffix} ends at byte {kept}, but by its manifest it has {size}"):
            Store(store.folder)
    path.unlink()
    with pytest.raises(DataError, match=rf"00002\.{suffix} is missing"):
        Store(store.folder)
    os.mkfifo(path)
    with pytest.raises(DataError, match=rf"00002\.{suffix} is not a regular file"):
        Store(store.folder)


@pytest.mark.parametrize(
    ("field", "offset"),
    [("magic", 0), ("version", 8), ("itemsize", 12), ("vocab_size", 16), ("n_tokens", 24), ("n_documents", 32),
     ("tokenizer", 40), ("reserved", 56)],
)  # fmt: skip
@pytest.mark.fault("F09")
def test_a_header_that_disagrees_with_the_manifest_is_refused(store: Store, field: str, offset: int) -> None:
    overwrite(store.folder / "shards/00001.tok", offset, b"\xee")
    with pytest.raises(DataError, match=rf"00001\.tok has {field}=.* in its header, but by its manifest it is"):
        Store(store.folder)


@pytest.mark.fault("F09")
def test_a_token_beyond_the_vocabulary_is_found_with_its_offset(store: Store) -> None:
    overwrite(store.folder / "shards/00001.tok", HEADER.size + 2 * 60, (300).to_bytes(2, "little"))
    damaged = Store(store.folder)
    message = r"00001\.tok is damaged: its token at offset 60 is 300, not below 300"
    with pytest.raises(DataError, match=message):
        damaged.verify()
    with pytest.raises(DataError, match=message):
        damaged.document(2)
    with pytest.raises(DataError, match=message):
        damaged.read(np.array([0, 9 + 50]), np.array([7, 20]))


def test_long_shards_are_scanned_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.data.store_files.SCANNED_TOKENS", 7)
    store.verify()
    overwrite(store.folder / "shards/00001.tok", HEADER.size + 2 * 60, b"\xff\xff")
    with pytest.raises(DataError, match="token at offset 60 is 65535"):
        Store(store.folder).verify()


@pytest.mark.parametrize("suffix", ["tok", "names"])
@pytest.mark.fault("F09")
def test_a_flipped_bit_is_found(store: Store, suffix: str) -> None:
    path = store.folder / f"shards/00003.{suffix}"
    overwrite(path, 70, bytes([path.read_bytes()[70] ^ 1]))
    with pytest.raises(
        DataError, match=rf"00003\.{suffix} is not as it was written: its sha256 .* but its manifest says"
    ):
        Store(store.folder).verify()


@pytest.mark.fault("F09")
def test_a_lost_end_of_document_is_found(store: Store) -> None:
    overwrite(store.folder / "shards/00002.tok", HEADER.size + 2 * 18, b"\x09\x00")
    with pytest.raises(DataError, match=r"00002\.tok .* document 0 of the shard ends at offset 18 with token 9, not"):
        Store(store.folder).verify()


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, 0, "byte 64: document 0 of the shard ends at token 0, after one that ends at 0"),
        (0, 38, "byte 72: document 1 of the shard ends at token 38, after one that ends at 38"),
        (1, 37, "byte 72: document 1 of the shard ends at token 37, .* in a shard of 38"),
        (0, 2**64 - 1, f"byte 64: document 0 of the shard ends at token {2**64 - 1}"),
    ],
)
@pytest.mark.fault("F09")
def test_a_broken_index_is_refused_before_it_is_used(store: Store, at: int, value: int, message: str) -> None:
    overwrite(store.folder / "shards/00002.idx", HEADER.size + 8 * at, value.to_bytes(8, "little"))
    damaged = Store(store.folder)
    for use in (damaged.document_lengths, damaged.document_starts, damaged.verify, lambda: damaged.document(0)):
        with pytest.raises(DataError, match=rf"00002\.idx is damaged at {message}"):
            use()


def test_damaged_names_are_refused(store: Store) -> None:
    path = store.folder / "shards/00000.names"
    overwrite(path, 64, b"?")
    with pytest.raises(DataError, match=r"00000\.names is damaged: the name of document 0 is no JSON string"):
        Store(store.folder).document_name(0)
    overwrite(path, 64, b"\n")
    with pytest.raises(DataError, match=r"00000\.names is damaged: 3 names for 2 documents"):
        Store(store.folder).document_name(0)
    for index in (-1, 7):
        with pytest.raises(DataError, match=f"has no document {index}: it holds 7, counted from 0"):
            store.document_name(index)
