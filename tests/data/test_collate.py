"""Rows as arrays equal a slow reference that works token by token."""

import time
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pretrain.data.collate import IGNORE, read_rows
from pretrain.data.packing import Plan, best_fit, concat
from pretrain.data.shuffle import Shuffle, micro_batch_samples
from pretrain.data.token_store.format import Vocabulary
from pretrain.data.token_store.store import Store, StoreWriter
from pretrain.errors import DataError

BOS, EOS, PAD = 1, 2, 0


def write_store(folder: Path, lengths: np.ndarray, shard_tokens: int = 1 << 20) -> Store:
    generator = np.random.default_rng(0)
    writer = StoreWriter(folder, Vocabulary(500, "t", BOS, EOS), shard_tokens)
    for length in lengths.tolist():
        writer.add(np.concatenate([[BOS], generator.integers(3, 500, length), [EOS]]), text_bytes=length)
    return writer.finish({})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    lengths = np.random.default_rng(3).integers(0, 90, 150)
    return write_store(tmp_path_factory.mktemp("rows") / "store", lengths, shard_tokens=1000)


@pytest.mark.parametrize("pack", [best_fit, concat])
def test_rows_equal_the_documents_token_by_token(store: Store, pack) -> None:
    plan = pack(store.document_lengths(), 32)
    assert len(store.manifest["shards"]) > 3
    found = read_rows(store, plan, np.arange(len(plan)), PAD)
    assert found.tokens.shape == (len(plan), 32)
    assert {found.tokens.dtype, found.next_tokens.dtype, found.positions.dtype} == {np.dtype(np.int64)}
    assert found.documents.dtype == np.int32
    for row in range(len(plan)):
        expected = [(PAD, IGNORE, 0, -1)] * 32
        at = 0
        _, *pieces = plan.pieces(np.array([row]))
        for number, (document, offset, length) in enumerate(zip(*pieces, strict=True)):
            tokens = [*store.document(int(document)).tolist(), IGNORE]
            for i in range(length):
                expected[at] = (tokens[offset + i], tokens[offset + i + 1], i, number)
                at += 1
        arrays = (found.tokens, found.next_tokens, found.positions, found.documents)
        assert list(zip(*(array[row].tolist() for array in arrays), strict=True)) == expected


def test_a_cut_document_is_predicted_across_the_cut(store: Store) -> None:
    """The last token before a cut still has a target: the first one after it, from another row."""
    plan = concat(store.document_lengths(), 32)
    rows = read_rows(store, plan, np.arange(len(plan) - 1), PAD)
    ends = rows.tokens[:, -1] == EOS
    assert_array_equal(rows.next_tokens[:-1, -1][~ends[:-1]], rows.tokens[1:, 0][~ends[:-1]])
    assert (rows.next_tokens[rows.tokens == EOS] == IGNORE).all()
    assert ((rows.next_tokens == IGNORE) == (rows.tokens == EOS)).all()


def test_any_selection_of_rows_equals_the_rows_alone(store: Store) -> None:
    plan = best_fit(store.document_lengths(), 32)
    chosen = np.array([7, 0, len(plan) - 1, 7])
    together = read_rows(store, plan, chosen, PAD)
    for place, row in enumerate(chosen):
        alone = read_rows(store, plan, np.array([row]), PAD)
        for name in ("tokens", "next_tokens", "positions", "documents"):
            assert_array_equal(getattr(together, name)[place], getattr(alone, name)[0])


def test_positions_may_count_along_the_row(store: Store) -> None:
    plan = best_fit(store.document_lengths(), 32)
    rows = read_rows(store, plan, np.arange(3), PAD, reset_positions=False)
    assert_array_equal(rows.positions, [np.arange(32)] * 3)


def test_a_plan_of_another_store_is_refused(store: Store) -> None:
    def one_piece(document: int, offset: int, length: int) -> Plan:
        return Plan(64, np.array([1]), np.array([document]), np.array([offset]), np.array([length], np.int32))

    row = np.array([0])
    with pytest.raises(DataError, match=r"has document 150, but .*store has 150 documents"):
        read_rows(store, one_piece(150, 0, 1), row, PAD)
    size = int(store.document_lengths()[4])
    with pytest.raises(DataError, match=rf"has tokens 1 to {size + 1} of document 4, but in .* it has {size}"):
        read_rows(store, one_piece(4, 1, size), row, PAD)


def test_reading_keeps_ahead_of_any_training(tmp_path: Path) -> None:
    """A floor that only a Python loop over tokens would miss; about 10 M tokens/s on an idle core."""
    lengths = np.minimum(np.random.default_rng(0).lognormal(np.log(300), 1.0, 2000), 5000).astype(np.int64)
    store = write_store(tmp_path / "store", lengths)
    plan = best_fit(store.document_lengths(), 1024)
    order = Shuffle(len(plan), seed=0)
    read_rows(store, plan, order(micro_batch_samples(0, 0, 8, 8)), PAD)
    started = time.process_time()
    for step in range(50):
        read_rows(store, plan, order(micro_batch_samples(step, 0, 8, 8)), PAD)
    assert 50 * 8 * 1024 / (time.process_time() - started) > 1_000_000
