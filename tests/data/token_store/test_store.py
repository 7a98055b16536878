"""The token store: documents are read back as written, for all shard sizes, names and vocabularies."""

import hashlib
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import xxhash
from numpy.testing import assert_array_equal

from pretrain.data.config import Packing, PythonDocsConfig
from pretrain.data.token_store import store as store_module
from pretrain.data.token_store.format import Vocabulary
from pretrain.data.token_store.store import Store, StoreWriter
from pretrain.data.train_stream import ShuffledRows
from pretrain.errors import DataError

BOS, EOS = 1, 2
NAMES = ["a.txt", "", "line\nbreak", 'quote" \\ and \u2028', "emoji \U0001f600", "lone \ud800", "x" * 300]


def writer(folder: Path, vocab_size: int = 300, shard_tokens: int = 40) -> StoreWriter:
    return StoreWriter(folder, Vocabulary(vocab_size, "ab" * 32, BOS, EOS), shard_tokens)


def some_documents(vocab_size: int = 300) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    sizes = [5, 0, 100, 17, 17, 1, 30]  # 100 is longer than a shard
    return [np.array([BOS, *generator.integers(3, vocab_size, size), EOS]) for size in sizes]


def write(folder: Path, vocab_size: int = 300) -> Store:
    out = writer(folder, vocab_size)
    for tokens, name in zip(some_documents(vocab_size), NAMES, strict=True):
        out.add(tokens, text_bytes=2 * len(tokens), name=name)
    return out.finish({"source": "test", "skipped": {"empty": 3}})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write(tmp_path / "store")


@pytest.mark.parametrize(("vocab_size", "itemsize"), [(300, 2), (65_536, 2), (65_537, 4), (2**32, 4)])
def test_what_is_written_is_read(tmp_path: Path, vocab_size: int, itemsize: int) -> None:
    documents = some_documents(vocab_size)
    store = write(tmp_path / "store", vocab_size)
    lengths = np.array([len(tokens) for tokens in documents])
    assert_array_equal(store.document_lengths(), lengths)
    assert_array_equal(store.document_starts(), np.cumsum(lengths) - lengths)
    assert store.document_lengths().dtype == store.document_starts().dtype == np.int64
    for index, tokens in enumerate(documents):
        assert_array_equal(store.document(index), tokens)
        assert store.document(index).dtype == np.int64
    assert [store.document_name(index) for index in range(7)] == NAMES
    assert (store.n_tokens, store.n_documents, store.text_bytes) == (lengths.sum(), 7, 2 * lengths.sum())
    assert (store.vocab_size, store.bos_id, store.eos_id) == (vocab_size, BOS, EOS)
    assert store.manifest["provenance"] == {"source": "test", "skipped": {"empty": 3}}
    assert (tmp_path / "store/shards/00000.tok").stat().st_size == 64 + itemsize * store.manifest["shards"][0]["tokens"]
    store.verify()


def test_shards_roll_over_between_documents(store: Store) -> None:
    shards = store.manifest["shards"]
    assert [shard["stem"] for shard in shards] == ["00000", "00001", "00002", "00003"]
    assert [shard["tokens"] for shard in shards] == [9, 102, 38, 35]
    assert [shard["documents"] for shard in shards] == [2, 1, 2, 2]


def test_pieces_are_read_across_shards_in_any_order(store: Store) -> None:
    documents = some_documents()
    starts = store.document_starts()
    pieces = store.read(np.array([starts[6] + 2, starts[0], starts[2] + 50]), np.array([3, 7, 52]))
    assert_array_equal(pieces, np.concatenate([documents[6][2:5], documents[0], documents[2][50:]]))
    assert store.read(np.array([], np.int64), np.array([], np.int64)).size == 0


@pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, 10), (0, -1), (184, 1), (2**62, 2**62)])
def test_a_piece_outside_its_shard_is_refused(store: Store, start: int, length: int) -> None:
    with pytest.raises(DataError, match=f"no shard holds the {length} tokens from offset {start} on"):
        store.read(np.array([start]), np.array([length]))


def test_few_files_stay_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_OPEN_MAPS", 2)
    for index, tokens in enumerate(some_documents()):
        assert_array_equal(store.document(index), tokens)
        assert len(store._maps) <= 2


def test_equal_documents_give_equal_bytes(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the buffer."""
    monkeypatch.setattr("pretrain.data.token_store.format.BUFFER_BYTES", 7)
    again = write(tmp_path / "again")
    for path in store.folder.rglob("*.*"):
        assert path.read_bytes() == (again.folder / path.relative_to(store.folder)).read_bytes()


def test_the_fingerprint_depends_on_the_tokens_alone(tmp_path: Path, store: Store) -> None:
    out = writer(tmp_path / "named")
    for tokens in some_documents():
        out.add(tokens, 1, "another name")
    assert out.finish({}).fingerprint == store.fingerprint
    out = writer(tmp_path / "other")
    for tokens in some_documents()[:-1]:
        out.add(tokens, 1)
    assert out.finish({}).fingerprint != store.fingerprint


def test_a_hash_covers_the_body_of_a_file(store: Store) -> None:
    data = (store.folder / "shards/00002.names").read_bytes()
    assert store.manifest["shards"][2]["files"]["names"] == {
        "bytes": len(data), "sha256": hashlib.sha256(data[64:]).hexdigest(),
        "pieces": xxhash.xxh3_64_hexdigest(data[64:]),
    }  # fmt: skip


def test_a_store_may_be_empty(tmp_path: Path) -> None:
    store = writer(tmp_path / "store").finish({})
    store.verify()
    assert store.document_lengths().shape == store.document_starts().shape == (0,)
    message = r"the token store \S+ has no tokens to read\. Prepare it again, from text that has some\."
    with pytest.raises(DataError, match=message):
        ShuffledRows(store, PythonDocsConfig(packing=Packing.concat), 8, pad_id=EOS, seed=0)
    with pytest.raises(DataError, match="has no document 0: it holds 0"):
        store.document(0)
    with pytest.raises(DataError, match="no shard holds the 1 tokens from offset 0"):
        store.read(np.array([0]), np.array([1]))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([BOS, 300, EOS], r"Document 'n\\n' has token 300 at offset 1, outside 0 to 299"),
        ([-1, EOS], "has token -1 at offset 0, outside 0 to 299"),
        ([BOS, 7], "does not end with the end-of-document token 2"),
        (np.array([], np.int64), "does not end with the end-of-document token 2"),
        ([1.0, 2.0], r"is float64 of shape \(2,\), not a flat array"),
        ([[1, 2]], r"is int64 of shape \(1, 2\), not a flat array"),
    ],
)
def test_a_document_that_cannot_be_stored_is_refused(tmp_path: Path, tokens: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        writer(tmp_path / "store").add(np.array(tokens), 1, "n\n")


def test_a_writer_refuses_settings_of_no_valid_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for vocab_size, eos_id in ((0, 0), (10, 10), (2**32 + 1, 0)):
        with pytest.raises(DataError, match=f"cannot have vocab_size={vocab_size} with bos_id=-1 and eos_id={eos_id}"):
            StoreWriter(tmp_path, Vocabulary(vocab_size, "", bos_id=-1, eos_id=eos_id), shard_tokens=9)
    out = writer(tmp_path / "store")
    with pytest.raises(DataError, match="already holds shards"):
        writer(tmp_path / "store")
    monkeypatch.setattr(store_module, "MAX_JSON_BYTES", 100)
    with pytest.raises(DataError, match=r"would take \d+ bytes for 0 shards .* Try a larger data\.shard_tokens"):
        out.finish({})
    with pytest.raises(DataError, match="is finished: no document can be added"):
        out.add(np.array([BOS, EOS]), 1)


@pytest.mark.fault("F10")
def test_another_tokenizer_is_refused_with_both_fingerprints(store: Store) -> None:
    store.check_tokenizer("ab" * 32, 300)
    for fingerprint, vocab_size in (("cd" * 32, 300), ("ab" * 32, 301)):
        with pytest.raises(DataError, match=f"{'ab' * 32}' of 300 ids, .*'{fingerprint}' of {vocab_size} ids"):
            store.check_tokenizer(fingerprint, vocab_size)


def test_a_failed_write_leaves_no_manifest_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = writer(tmp_path / "store")

    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        out.finish({})
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["shards"]
