"""A damaged or hostile store is refused with the file and offset."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data.token_store.format import HEADER, Vocabulary, fingerprint_of
from pretrain.data.token_store.piece_hashes import PIECE_BYTES, hashes_of
from pretrain.data.token_store.store import Store, StoreWriter
from pretrain.errors import DataError
from pretrain.files.records import SEAL, sealed

BOS, EOS = 1, 2


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Shards of 2, 1, 2 and 2 documents with 9, 102, 38 and 35 tokens."""
    out = StoreWriter(tmp_path / "store", Vocabulary(300, "ab", BOS, EOS), shard_tokens=40)
    for size in (5, 0, 100, 17, 17, 1, 30):
        out.add(np.array([BOS, *[7] * size, EOS]), text_bytes=size, name=f"{size}.txt")
    return out.finish({})


def edit(folder: Path, change: dict[str, Any], consistent: bool = False) -> None:
    """Change fields of a manifest and renew its seal."""
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **change}
    if consistent:
        manifest["fingerprint"] = fingerprint_of(manifest)
    path.write_text(json.dumps(sealed(manifest)))


def hash_again(folder: Path) -> None:
    """Make the manifest match the files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"]:
        for suffix, file in shard["files"].items():
            body = (folder / f"shards/{shard['stem']}.{suffix}").read_bytes()[HEADER.size :]
            file["sha256"], file["pieces"] = hashlib.sha256(body).hexdigest(), hashes_of(np.frombuffer(body, np.uint8))
    edit(folder, manifest, consistent=True)


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
def test_a_file_that_is_no_manifest_is_refused(store: Store, content: bytes, message: str) -> None:
    (store.folder / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Store(store.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version=2, but this release reads version 1 only"),
        ({"version": True}, "version=True, but this release"),
        ({"vocab_size": 0}, "vocab_size=0, which is below 1"),
        ({"vocab_size": 10**4000}, "vocab_size=1000"),
        ({"eos_id": "\x1b[31m"}, r"eos_id='\\x1b\[31m', which is no whole number"),
        ({"dtype": "uint32"}, "dtype='uint32', but its vocab_size requires uint16"),
        ({"dtype": None}, "dtype=None, which is no text"),
        ({"shards": {}}, "shards={}, which is no list"),
        ({"shards": [1]}, "shards of .* is 1, which is no object"),
        ({"n_tokens": 185}, "n_tokens=185, which is not the sum over its shards"),
        ({"n_documents": 1.5}, "n_documents=1.5, which is no whole number"),
        ({"fingerprint": "0" * 64}, "has a fingerprint other than that of its contents"),
        ({"bos_id": 5}, "has a fingerprint other than that of its contents"),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused(store: Store, change: dict[str, Any], message: str) -> None:
    edit(store.folder, change)
    with pytest.raises(DataError, match=message):
        Store(store.folder)


@pytest.mark.parametrize("stem", ["../x", "/etc/passwd", "a/b", "..", "", "a\x00b", "a\n"])
def test_a_name_that_could_leave_the_folder_is_refused(store: Store, stem: object) -> None:
    first, *others = store.manifest["shards"]
    edit(store.folder, {"shards": [{**first, "stem": stem}, *others]}, consistent=True)
    with pytest.raises(DataError, match="which is not a plain file name"):
        Store(store.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens=0, which is below 1"),
        ({"files": []}, "files of shards of .* is \\[\\], which is no object"),
        ({"files": {}}, "files of shards of .* has no tok"),
        ({"files": {"tok": {"bytes": 9}}}, "bytes=9, which is below 64"),
        ({"files": {"tok": {"bytes": 64, "sha256": 5}}}, "sha256=5, which is no text"),
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
    for length in (size - 1, 64, 0):
        os.truncate(path, length)
        with pytest.raises(DataError, match=rf"00002\.{suffix} has {length} bytes, but {size} in the store's manifest"):
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
    with pytest.raises(DataError, match=rf"00001\.tok has {field}=.* in its header, but the store's manifest implies"):
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
    monkeypatch.setattr("pretrain.data.token_store.format.SCANNED_TOKENS", 7)
    store.verify()
    overwrite(store.folder / "shards/00001.tok", HEADER.size + 2 * 60, b"\xff\xff")
    with pytest.raises(DataError, match="token at offset 60 is 65535"):
        Store(store.folder).verify()


@pytest.mark.parametrize("suffix", ["tok", "names"])
@pytest.mark.fault("F09")
def test_a_flipped_bit_is_found(store: Store, suffix: str) -> None:
    path = store.folder / f"shards/00003.{suffix}"
    overwrite(path, 70, bytes([path.read_bytes()[70] ^ 1]))
    with pytest.raises(DataError, match=rf"00003\.{suffix} is damaged: its (sha256|items 0)"):
        Store(store.folder).verify()
    damaged = Store(store.folder)
    use = {"tok": damaged.document, "names": damaged.document_name}[suffix]
    with pytest.raises(DataError, match=rf"00003\.{suffix} is damaged: its items 0 to \d+ do not match their hash"):
        use(6)
    assert damaged.document(0).tolist() == [BOS, 7, 7, 7, 7, 7, EOS]


def test_a_plausible_but_changed_index_is_detected(store: Store) -> None:
    overwrite(store.folder / "shards/00002.idx", HEADER.size, (18).to_bytes(8, "little"))
    with pytest.raises(DataError, match=r"00002\.idx is damaged: its items 0 to 1 do not match their hash"):
        Store(store.folder).document_bounds()


def test_each_piece_is_checked_once_and_before_its_first_item_is_used(tmp_path: Path) -> None:
    """Documents of 2.5 pieces and of half a piece; only those within a damaged piece fail to read."""
    out = StoreWriter(tmp_path / "store", Vocabulary(300, "ab", bos_id=-1, eos_id=EOS), shard_tokens=2**40)
    half = PIECE_BYTES // 4  # tokens of two bytes
    for tokens in (half, 5 * half, half, half, half):
        out.add(np.append(np.arange(tokens - 1) % 299, EOS), text_bytes=1)
    store = out.finish({})
    path = store.folder / "shards/00000.tok"
    assert len(store.manifest["shards"][0]["files"]["tok"]["pieces"]) == 16 * 5  # 9 halves
    offsets = [HEADER.size + piece * PIECE_BYTES + 1000 for piece in (1, 4)]
    for offset in offsets:
        overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 1]))
    damaged = Store(store.folder)
    for index in (0, 2):
        assert np.array_equal(damaged.document(index), np.append(np.arange(half - 1) % 299, EOS))
    for index, items in ((1, "1,048,576 to 2,097,151"), (4, "4,194,304 to 4,718,591")):
        with pytest.raises(DataError, match=rf"00000\.tok is damaged: its items {items} do not match their hash"):
            damaged.document(index)
    for offset in offsets:
        overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 1]))
    assert damaged.document(1).size == 5 * half  # checked now
    overwrite(path, offsets[0], bytes([path.read_bytes()[offsets[0]] ^ 1]))
    assert damaged.document(1).size == 5 * half  # and not again


def without_pieces(folder: Path) -> None:
    """Turn a manifest into one of an earlier version."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"]:
        for file in shard["files"].values():
            del file["pieces"]
    del manifest[SEAL]
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def test_an_earlier_store_is_verified_once_and_given_piece_hashes(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    path, written = store.folder / "manifest.json", (store.folder / "manifest.json").read_bytes()
    without_pieces(store.folder)
    found = Store(store.folder)
    assert found.fingerprint == store.fingerprint
    assert "of an earlier version, without hashes of its pieces: all 0.0 MB were verified, at " in caplog.text
    assert json.loads(path.read_bytes()) == json.loads(written)
    caplog.clear()
    Store(store.folder)
    assert not caplog.text


def test_a_damaged_store_of_an_earlier_version_is_not_opened(store: Store) -> None:
    without_pieces(store.folder)
    overwrite(store.folder / "shards/00003.tok", 70, b"\x05")
    with pytest.raises(DataError, match=r"00003\.tok is damaged: its sha256"):
        Store(store.folder)


def test_a_read_only_earlier_store_is_verified_at_each_start(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pieces(store.folder)
    before = (store.folder / "manifest.json").read_bytes()

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pretrain.data.token_store.store.write_atomically", refuse)
    found = Store(store.folder)
    assert "([Errno 30] Read-only file system), so it is verified at each start" in caplog.text
    assert (store.folder / "manifest.json").read_bytes() == before
    overwrite(store.folder / "shards/00003.tok", 70, b"\x05")
    with pytest.raises(DataError, match=r"00003\.tok is damaged: its items"):
        found.document(6)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [(5, "pieces=5, which is no text"), ("0" * 15, "which are no 16 hexadecimal"), ("g" * 16, "which are no 16 hex")],
)
def test_malformed_hashes_of_pieces_are_refused(store: Store, pieces: object, message: str) -> None:
    first, *others = store.manifest["shards"]
    first["files"]["tok"]["pieces"] = pieces
    edit(store.folder, {"shards": [first, *others]})
    with pytest.raises(DataError, match=message):
        Store(store.folder)


def test_an_edited_manifest_is_refused(store: Store) -> None:
    path = store.folder / "manifest.json"
    path.write_text(path.read_text().replace('"provenance": {}', '"provenance": {"a": 1}'))
    with pytest.raises(DataError, match=r"manifest\.json is not as it was written: its record_sha256"):
        Store(store.folder)


def test_files_deleted_while_a_store_is_open_are_named(store: Store) -> None:
    found = Store(store.folder)
    for suffix, use in (("tok", lambda: found.document(0)), ("names", lambda: found.document_name(0))):
        found.document_bounds()
        (store.folder / f"shards/00000.{suffix}").unlink()
        with pytest.raises(DataError, match=rf"00000\.{suffix} cannot be read: No such file.* resume=auto, and it is"):
            use()


@pytest.mark.fault("F09")
def test_a_lost_end_of_document_is_found(store: Store) -> None:
    overwrite(store.folder / "shards/00002.tok", HEADER.size + 2 * 18, b"\x09\x00")
    with pytest.raises(DataError, match=r"00002\.tok .* document 0 of the shard ends at offset 18 with token 9, not"):
        Store(store.folder).verify()


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, 0, "byte 64: document 0 of the shard ends at token 0, and the one before at 0"),
        (0, 38, "byte 72: document 1 of the shard ends at token 38, and the one before at 38"),
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
    hash_again(store.folder)
    with pytest.raises(DataError, match=r"00000\.names is damaged: the name of document 0 is no JSON string"):
        Store(store.folder).document_name(0)
    overwrite(path, 64, b"\n")
    with pytest.raises(DataError, match=r"00000\.names is damaged: 3 names for 2 documents"):
        Store(store.folder).document_name(0)
    for index in (-1, 7):
        with pytest.raises(DataError, match=f"has no document {index}: it holds 7, counted from 0"):
            store.document_name(index)
